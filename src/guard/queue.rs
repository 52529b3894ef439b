//! Who is next: four classes, and within each one caller after the other.
//!
//! Pure: it holds waiters and knows nothing of what they wait for. Invariants: a class is
//! served only while those before it are empty; within a class each caller has its turn,
//! whatever the others have waiting; there are never more waiters of a class than its
//! bound, and when it is reached, whoever has most waiting gives one up to who has less.

use std::collections::{HashMap, VecDeque};

use super::Sender;

/// What an operation is for. In order: who is first goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for this one answer.
    Foreground,
    /// One of many, as when a node starts.
    Bulk,
    /// A DEK is wrapped anew.
    Rewrap,
    /// So that nobody has to wait later.
    Prefetch,
}

impl Class {
    /// Every class, in order.
    pub const ALL: [Self; 4] = [Self::Foreground, Self::Bulk, Self::Rewrap, Self::Prefetch];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Foreground => "foreground",
            Self::Bulk => "bulk",
            Self::Rewrap => "rewrap",
            Self::Prefetch => "prefetch",
        }
    }
}

/// Waiters in their order.
#[derive(Debug)]
pub(super) struct Queue<W> {
    lines: [Line<W>; Class::ALL.len()],
    /// Of each class.
    max: usize,
}

#[derive(Debug)]
struct Line<W> {
    /// Callers who have some waiting, in the order of their turns.
    turns: VecDeque<Sender>,
    waiting: HashMap<Sender, VecDeque<W>>,
    len: usize,
}

/// What became of a waiter that was put in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed<W> {
    /// It waits.
    In,
    /// It waits in place of this one.
    Instead(W),
    /// There is no room for it.
    Full(W),
}

impl<W> Queue<W> {
    /// Of at most `max` waiters in each class.
    pub(super) fn new(max: usize) -> Self {
        Self { lines: Class::ALL.map(|_| Line::new()), max }
    }

    pub(super) fn push(&mut self, class: Class, sender: Sender, waiter: W) -> Pushed<W> {
        let max = self.max;
        let line = self.line(class);
        if line.len < max {
            line.push(sender, waiter);
            return Pushed::In;
        }
        let own = line.of(sender);
        match line.longest() {
            Some((heaviest, len)) if len > own + 1 => {
                let Some(out) = line.pop_last(heaviest) else { return Pushed::Full(waiter) };
                line.push(sender, waiter);
                Pushed::Instead(out)
            }
            _ => Pushed::Full(waiter),
        }
    }

    /// The next one, to look at.
    pub(super) fn peek(&self) -> Option<&W> {
        self.lines.iter().find_map(Line::peek)
    }

    /// The next one, to serve.
    pub(super) fn pop(&mut self) -> Option<W> {
        self.lines.iter_mut().find_map(Line::pop)
    }

    /// How many would be served before a new one of `sender` in `class`.
    pub(super) fn ahead(&self, class: Class, sender: Sender) -> usize {
        let before = self.lines[..class as usize].iter().map(|line| line.len).sum::<usize>();
        let line = &self.lines[class as usize];
        let own = line.of(sender);
        before + line.waiting.values().map(|waiting| waiting.len().min(own + 1)).sum::<usize>()
    }

    /// How many of a class wait.
    pub(super) fn len(&self, class: Class) -> usize {
        self.lines[class as usize].len
    }

    /// Puts out whom nobody waits for any more.
    pub(super) fn retain(&mut self, class: Class, wanted: impl Fn(&W) -> bool) {
        self.line(class).retain(wanted);
    }

    fn line(&mut self, class: Class) -> &mut Line<W> {
        &mut self.lines[class as usize]
    }
}

impl<W> Line<W> {
    fn new() -> Self {
        Self { turns: VecDeque::new(), waiting: HashMap::new(), len: 0 }
    }

    fn of(&self, sender: Sender) -> usize {
        self.waiting.get(&sender).map_or(0, VecDeque::len)
    }

    fn longest(&self) -> Option<(Sender, usize)> {
        self.waiting.iter().map(|(of, waiting)| (*of, waiting.len())).max_by_key(|(_, len)| *len)
    }

    fn push(&mut self, sender: Sender, waiter: W) {
        let waiting = self.waiting.entry(sender).or_default();
        if waiting.is_empty() {
            self.turns.push_back(sender);
        }
        waiting.push_back(waiter);
        self.len += 1;
    }

    fn peek(&self) -> Option<&W> {
        self.waiting.get(self.turns.front()?)?.front()
    }

    fn pop(&mut self) -> Option<W> {
        let sender = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&sender)?;
        let next = waiting.pop_front()?;
        self.len -= 1;
        if waiting.is_empty() {
            self.waiting.remove(&sender);
        } else {
            self.turns.push_back(sender);
        }
        Some(next)
    }

    /// The one of `sender` that would be served last.
    fn pop_last(&mut self, sender: Sender) -> Option<W> {
        let waiting = self.waiting.get_mut(&sender)?;
        let last = waiting.pop_back()?;
        self.len -= 1;
        if waiting.is_empty() {
            self.waiting.remove(&sender);
            self.turns.retain(|turn| *turn != sender);
        }
        Some(last)
    }

    fn retain(&mut self, wanted: impl Fn(&W) -> bool) {
        for waiting in self.waiting.values_mut() {
            waiting.retain(&wanted);
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        let waiting = &self.waiting;
        self.turns.retain(|turn| waiting.contains_key(turn));
        self.len = waiting.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(max: usize, waiters: &[(Class, u64, &'static str)]) -> Queue<&'static str> {
        let mut queue = Queue::new(max);
        for (class, sender, name) in waiters {
            assert_eq!(queue.push(*class, Sender(*sender), *name), Pushed::In);
        }
        queue
    }

    fn drained<W>(queue: &mut Queue<W>) -> Vec<W> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    use Class::{Bulk, Foreground, Prefetch, Rewrap};

    #[test]
    fn classes_go_in_order_and_callers_in_turn() {
        let mut queue = queue(
            10,
            &[
                (Prefetch, 1, "p"),
                (Rewrap, 1, "r"),
                (Bulk, 1, "b1"),
                (Bulk, 1, "b2"),
                (Bulk, 1, "b3"),
                (Bulk, 2, "B1"),
                (Foreground, 3, "f"),
            ],
        );
        assert_eq!(queue.peek(), Some(&"f"));
        assert_eq!(drained(&mut queue), ["f", "b1", "B1", "b2", "b3", "r", "p"]);
    }

    #[test]
    fn who_has_most_gives_way_when_there_is_no_room() {
        let mut queue = queue(3, &[(Bulk, 1, "1"), (Bulk, 1, "2"), (Bulk, 1, "3")]);
        assert_eq!(queue.push(Bulk, Sender(1), "4"), Pushed::Full("4"));
        assert_eq!(queue.push(Bulk, Sender(2), "x"), Pushed::Instead("3"));
        assert_eq!(queue.push(Bulk, Sender(2), "y"), Pushed::Full("y"), "they have alike");
        assert_eq!(queue.push(Foreground, Sender(1), "f"), Pushed::In, "a class of its own");
        assert_eq!(drained(&mut queue), ["f", "1", "x", "2"]);
        assert_eq!(Queue::new(0).push(Bulk, Sender(1), 1), Pushed::Full(1));
    }

    #[test]
    fn it_is_known_how_many_go_first() {
        let queue = queue(
            10,
            &[(Foreground, 1, "f"), (Bulk, 1, "1"), (Bulk, 1, "2"), (Bulk, 1, "3"), (Bulk, 2, "x")],
        );
        assert_eq!(queue.ahead(Foreground, Sender(2)), 1);
        assert_eq!(queue.ahead(Bulk, Sender(1)), 1 + 3 + 1);
        assert_eq!(queue.ahead(Bulk, Sender(2)), 1 + 2 + 1);
        assert_eq!(queue.ahead(Bulk, Sender(3)), 1 + 1 + 1);
    }

    proptest! {
        /// Nobody is lost, served twice or kept beyond the bound.
        #[test]
        fn all_who_are_in_come_out(
            steps in prop::collection::vec((0u8..4, 0usize..4, 0u64..5), 0..200),
        ) {
            let mut queue = Queue::new(6);
            let (mut next, mut inside) = (0u32, std::collections::BTreeSet::new());
            for (step, class, sender) in steps {
                let class = Class::ALL[class];
                match step {
                    0 => {
                        let served = queue.pop();
                        prop_assert_eq!(served.is_none(), inside.is_empty());
                        prop_assert!(served.is_none_or(|served| inside.remove(&served)));
                    }
                    1 => {
                        queue.retain(class, |waiter| waiter % 3 != 0);
                        let left: Vec<_> = inside.iter().copied().collect();
                        // Only that class was looked through: ask the queue for the rest.
                        let mut others = Queue::new(usize::MAX);
                        std::mem::swap(&mut others, &mut queue);
                        let kept: std::collections::BTreeSet<_> =
                            drained(&mut others).into_iter().collect();
                        prop_assert!(left.iter().all(|w| kept.contains(w) || w % 3 == 0));
                        inside.clear();
                        queue = Queue::new(6);
                    }
                    _ => {
                        match queue.push(class, Sender(sender), next) {
                            Pushed::In => _ = inside.insert(next),
                            Pushed::Instead(out) => {
                                prop_assert!(inside.remove(&out));
                                inside.insert(next);
                            }
                            Pushed::Full(waiter) => prop_assert_eq!(waiter, next),
                        }
                        next += 1;
                    }
                }
                let len: usize = Class::ALL.iter().map(|class| queue.len(*class)).sum();
                prop_assert_eq!(len, inside.len());
                prop_assert!(Class::ALL.iter().all(|class| queue.len(*class) <= 6));
            }
        }
    }
}
