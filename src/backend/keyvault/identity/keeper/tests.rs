//! The keeper on a clock that tests turn.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn token(text: &str, got: Instant, life: Duration) -> Token {
    Token { secret: Secret::copy_of(text.as_bytes()), got, not_after: got + life }
}

fn holding(life: Duration) -> (State, Instant) {
    let start = Instant::now();
    let mut state = State::default();
    state.settle(Ok(token("a", start, life)), start);
    (state, start)
}

#[test]
fn a_token_is_renewed_well_before_it_ends() {
    let (state, start) = holding(HOUR);
    for jitter in [0.0, 0.5, 1.0] {
        let due = state.renew_in(start, jitter);
        assert!(due >= HOUR - 2 * RENEW_BEFORE && due <= HOUR - RENEW_BEFORE, "{due:?}");
    }
    let (short, start) = holding(Duration::from_secs(100));
    assert_eq!(short.renew_in(start, 0.0), Duration::from_secs(50), "half of its life");
    let (shorter, start) = holding(Duration::from_secs(40));
    assert_eq!(shorter.renew_in(start, 0.0), RENEW_NOT_BEFORE);
    assert_eq!(State::default().renew_in(start, 0.5), Duration::ZERO, "there is none");
}

#[test]
fn a_renewal_that_fails_does_no_harm_while_the_token_is_good() {
    let (mut state, start) = holding(HOUR);
    let later = start + Duration::from_secs(3000);
    state.settle(Err(Error::new(Reason::BackendMisconfigured, "no")), later);
    assert!(state.good(later).is_some());
    assert!(state.renew_in(later, 1.0) >= PAUSE_MIN, "not at once");
    assert!(state.good(start + HOUR - SPARE).is_none());
}

#[test]
fn pauses_between_failures_grow_to_a_bound() {
    let mut state = State::default();
    let now = Instant::now();
    let mut before = Duration::ZERO;
    for _ in 0..40 {
        state.settle(Err(Error::new(Reason::BackendUnreachable, "x")), now);
        let pause = state.renew_in(now, 1.0);
        assert!(pause >= before && pause <= PAUSE_MAX);
        before = pause;
    }
    assert_eq!(before, PAUSE_MAX);
}

#[test]
fn only_the_held_token_can_be_refused_and_not_in_its_first_seconds() {
    let (mut state, start) = holding(HOUR);
    let later = start + REJECTED_NOT_BEFORE;
    assert!(!state.reject(b"a", start), "it is new");
    assert!(!state.reject(b"b", later), "it is another");
    assert!(state.reject(b"a", later));
    assert!(!state.reject(b"a", later), "once is enough");
    assert!(state.good(later).is_none());
    state.settle(Ok(token("a", later, HOUR)), later);
    assert!(state.good(later).is_some());
}

proptest! {
    /// Whatever happens, no token is handed out that is refused or has ended.
    #[test]
    fn what_is_handed_out_is_good(steps in prop::collection::vec((0..5_u8, 0..4000_u64), 0..40)) {
        let mut now = Instant::now();
        let mut state = State::default();
        for (step, secs) in steps {
            now += Duration::from_secs(secs);
            match step {
                0 => state.settle(Ok(token("t", now, Duration::from_secs(secs))), now),
                1 => state.settle(Err(Error::new(Reason::BackendUnreachable, "x")), now),
                2 => _ = state.reject(b"t", now),
                _ => {}
            }
            if let Some(token) = state.good(now) {
                prop_assert!(!state.rejected && now + SPARE < token.not_after);
                let due = now + state.renew_in(now, 0.5);
                prop_assert!(due <= token.not_after + RENEW_NOT_BEFORE + PAUSE_MAX);
            } else {
                prop_assert!(state.renew_in(now, 0.5) <= PAUSE_MAX);
            }
        }
    }
}

/// Gives tokens of an hour: `1`, `2` …; or fails.
struct Counter {
    asked: AtomicU64,
    given: AtomicU64,
    fails: Mutex<Option<Reason>>,
}

#[async_trait]
impl TokenSource for Counter {
    async fn token(&self) -> Result<Token, Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(100)).await;
        if let Some(reason) = *self.fails.lock().unwrap() {
            return Err(Error::new(reason, "no"));
        }
        let number = 1 + self.given.fetch_add(1, Ordering::SeqCst);
        Ok(token(&number.to_string(), now(), HOUR))
    }
}

fn keeper() -> (Arc<Counter>, Arc<Keeper>) {
    let source = Arc::new(Counter {
        asked: AtomicU64::new(0),
        given: AtomicU64::new(0),
        fails: Mutex::new(None),
    });
    let vault = VaultUrl::parse("https://kv.vault.azure.net").unwrap();
    let keeper = Keeper::new(vault, Arc::clone(&source) as _);
    (source, keeper)
}

async fn ask(keeper: &Arc<Keeper>) -> azure_core::Result<String> {
    let scope = "https://vault.azure.net/.default";
    let token = ByKeeper(Arc::clone(keeper)).get_token(&[scope], None).await?;
    assert!(token.expires_on <= OffsetDateTime::UNIX_EPOCH, "the SDK must come back");
    Ok(token.token.secret().to_owned())
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_get_one_token_and_it_is_renewed_while_nobody_waits() {
    let (source, keeper) = keeper();
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let keeper = Arc::clone(&keeper);
            tokio::spawn(async move { ask(&keeper).await.unwrap() })
        })
        .collect();
    for task in asking {
        assert_eq!(task.await.unwrap(), "1");
    }
    // Through ten lifetimes somebody asks every minute, and never waits.
    for _ in 0..600 {
        sleep(Duration::from_secs(60)).await;
        let began = now();
        ask(&keeper).await.unwrap();
        assert_eq!(now(), began);
    }
    let given = source.given.load(Ordering::SeqCst);
    assert!((11..=17).contains(&given), "{given}");
    keeper.stop();
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_before_the_next_request() {
    let (_, keeper) = keeper();
    assert_eq!(ask(&keeper).await.unwrap(), "1");
    keeper.rejected(b"1");
    assert_eq!(ask(&keeper).await.unwrap(), "1", "it is too young to be to blame");
    sleep(Duration::from_secs(20)).await;
    keeper.rejected(b"1");
    assert_eq!(ask(&keeper).await.unwrap(), "2");
    keeper.rejected(b"1");
    assert_eq!(ask(&keeper).await.unwrap(), "2", "that one is gone already");
    keeper.stop();
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_is_gone_is_told_once_the_token_has_ended() {
    let (source, keeper) = keeper();
    assert_eq!(ask(&keeper).await.unwrap(), "1");
    *source.fails.lock().unwrap() = Some(Reason::BackendMisconfigured);
    sleep(HOUR - 2 * SPARE).await;
    assert_eq!(ask(&keeper).await.unwrap(), "1");
    sleep(2 * SPARE).await;
    let refused = ask(&keeper).await.unwrap_err();
    let error = refused.downcast_ref::<Error>().expect("an error of ours");
    assert_eq!(error.reason(), Reason::BackendMisconfigured);
    *source.fails.lock().unwrap() = None;
    sleep(PAUSE_MAX).await;
    assert_eq!(ask(&keeper).await.unwrap(), "2", "by itself");
    keeper.stop();
}

#[tokio::test]
async fn a_token_for_somebody_else_is_not_handed_out() {
    let (source, keeper) = keeper();
    for scopes in [&["https://azure.net/.default"][..], &["https://evil.example/.default"], &[]] {
        let by_keeper = ByKeeper(Arc::clone(&keeper));
        assert!(by_keeper.get_token(scopes, None).await.is_err(), "{scopes:?}");
    }
    assert_eq!(source.given.load(Ordering::SeqCst), 0);
}

/// However many calls need a token that is refused, the token endpoint sees few of them.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_asked_for_in_every_call() {
    let (source, keeper) = keeper();
    *source.fails.lock().unwrap() = Some(Reason::BackendMisconfigured);
    for _ in 0..600 {
        assert!(ask(&keeper).await.is_err());
        sleep(Duration::from_millis(100)).await;
    }
    let asked = source.asked.load(Ordering::SeqCst);
    assert!((10..=20).contains(&asked), "{asked} times in a minute");
    keeper.stop();
}
