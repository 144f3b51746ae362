// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The deadline of a call.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// The deadline of a call, and how the time before it is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// The time at which the caller stops waiting.
    at: Instant,
    /// The time that an error response needs to reach the caller.
    margin: Duration,
    /// The time that containerd needs to serve the call.
    reserve: Duration,
}

impl Deadline {
    /// Reads the deadline from the headers of a request; `None` if there is none.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let timeout = parse(headers.get("grpc-timeout")?.to_str().ok()?)?;
        let margin = (timeout / 20).max(Duration::from_millis(200));
        Some(Self {
            at: Instant::now().checked_add(timeout)?,
            margin: margin.min(Duration::from_secs(2)),
            reserve: (timeout / 10).min(Duration::from_secs(10)),
        })
    }

    /// Returns the time at which to answer with an error.
    pub(crate) fn answer_at(self) -> Instant {
        self.at.checked_sub(self.margin).unwrap_or(self.at)
    }

    /// Returns whether the caller has stopped waiting. Its clock started a little earlier than ours.
    pub(crate) fn is_over(self) -> bool {
        Instant::now() + self.margin / 4 >= self.at
    }

    /// Returns whether containerd has enough time to serve the call.
    pub(crate) fn leaves_time(self) -> bool {
        Instant::now() + self.reserve <= self.at
    }
}

/// Parses `grpc-timeout`: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_the_format_of_grpc() {
        for (text, seconds) in [
            ("120S", 120.0),
            ("2M", 120.0),
            ("1H", 3600.0),
            ("1500m", 1.5),
            ("250000u", 0.25),
            ("99999999n", 0.099_999_999),
        ] {
            assert_eq!(parse(text).map(|time| time.as_secs_f64()), Some(seconds));
        }
        for wrong in ["", "S", "12", "123456789S", "-1S", "1x", "1 S"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_margins_follow_the_timeout() {
        for (timeout, margin, reserve) in
            [("3S", 200, 300), ("20S", 1000, 2000), ("2M", 2000, 10_000)]
        {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                http::HeaderValue::from_static(timeout),
            )]);
            let deadline = Deadline::of(&headers).unwrap();
            assert_eq!(deadline.margin, Duration::from_millis(margin));
            assert_eq!(deadline.reserve, Duration::from_millis(reserve));
            assert!(deadline.leaves_time());
            assert!(!deadline.is_over());
            tokio::time::sleep_until(deadline.answer_at()).await;
            assert!(!deadline.leaves_time());
            assert!(!deadline.is_over());
            tokio::time::sleep_until(deadline.at).await;
            assert!(deadline.is_over());
        }
    }
}
