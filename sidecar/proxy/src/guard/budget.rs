//! How much of one sort of frame a peer may send.

use std::time::Duration;

use tokio::time::Instant;

/// How fast a budget fills, and how full it gets.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// What it begins with, and what time fills it up to.
    pub burst: u32,
    /// What a second adds.
    pub per_second: u32,
    /// What useful work fills it up to.
    pub most: u32,
}

/// A token bucket that reads the clock only when it is empty.
#[derive(Debug)]
pub struct Budget {
    left: u32,
    /// Everything that the time before this brought is in `left`.
    filled: Instant,
}

impl Budget {
    /// A full one.
    pub fn new(allowance: Allowance, now: Instant) -> Self {
        Self { left: allowance.burst, filled: now }
    }

    /// Takes `cost`; false when it is not there.
    pub fn take(&mut self, allowance: Allowance, cost: u32) -> bool {
        if self.left < cost {
            self.fill(allowance, Instant::now());
        }
        match self.left.checked_sub(cost) {
            Some(left) => self.left = left,
            None => return false,
        }
        true
    }

    /// Whether more than half of its burst is used up, by all that time has given back.
    pub fn is_half_used(&mut self, allowance: Allowance) -> bool {
        self.fill(allowance, Instant::now());
        self.left < allowance.burst / 2
    }

    /// Useful work was done.
    pub fn earn(&mut self, allowance: Allowance, earned: u32) {
        if self.left < allowance.most {
            self.left = self.left.saturating_add(earned).min(allowance.most);
        }
    }

    fn fill(&mut self, allowance: Allowance, now: Instant) {
        if allowance.per_second == 0 {
            return;
        }
        let millis = u64::try_from(now.saturating_duration_since(self.filled).as_millis()).unwrap_or(u64::MAX);
        let brought = millis.saturating_mul(u64::from(allowance.per_second)) / 1_000;
        // Time that has not brought a whole one stays, so that asking often costs nothing.
        let used = brought.saturating_mul(1_000) / u64::from(allowance.per_second);
        self.filled = self.filled.checked_add(Duration::from_millis(used)).unwrap_or(now);
        let brought = u32::try_from(brought).unwrap_or(u32::MAX);
        self.left = self.left.max(self.left.saturating_add(brought).min(allowance.burst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Allowance = Allowance { burst: 100, per_second: 10, most: 150 };

    fn takes(budget: &mut Budget) -> usize {
        (0..1_000).take_while(|_| budget.take(TEN, 1)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn time_fills_it_up_to_its_burst_and_work_beyond() {
        let mut budget = Budget::new(TEN, Instant::now());
        assert_eq!(takes(&mut budget), 100);
        tokio::time::advance(Duration::from_millis(1_950)).await;
        assert_eq!(takes(&mut budget), 19);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(takes(&mut budget), 1);
        tokio::time::advance(Duration::from_secs(1_000)).await;
        assert_eq!(takes(&mut budget), 100);
        budget.earn(TEN, 1_000);
        assert_eq!(takes(&mut budget), 150);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_used_long_ago_is_not_used_any_more() {
        let mut budget = Budget::new(TEN, Instant::now());
        assert!(budget.take(TEN, 50) && !budget.is_half_used(TEN));
        assert!(budget.take(TEN, 1) && budget.is_half_used(TEN));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(!budget.is_half_used(TEN));
    }
}
