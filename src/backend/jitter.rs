//! Chance, for who asks a backend again and again: so that a fleet does not ask in step.

/// A number from 0 to 1. Good enough to spread, and for nothing else.
pub(crate) fn jitter() -> f64 {
    let mut byte = [128];
    // Without randomness there is no jitter, which costs nothing but politeness.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_between_zero_and_one() {
        assert!((0..1000).map(|_| jitter()).all(|jitter| (0.0..=1.0).contains(&jitter)));
    }
}
