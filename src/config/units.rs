//! Sizes and durations as operators write them.

use std::time::Duration;

/// `5GiB`, `64KB`, `512`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// `500ms`, `10s`, `5m`, `24h`, `7d`.
pub(super) fn span(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor).map(Duration::from_millis)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans() {
        for bad in ["", "GiB", "1.5GiB", "-1", "1 parsec", "99999999999TiB", "1gib"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        for (text, value) in [("0", 0), ("512", 512), ("5 GiB", 5 << 30), ("1KB", 1000)] {
            assert_eq!(bytes(text), Some(value));
        }
        for bad in ["", "1", "s", "-1s", "1.5h", "1y", "99999999999999999d"] {
            assert_eq!(span(bad), None, "{bad}");
        }
        for (text, ms) in [("0s", 0), ("500ms", 500), ("24h", 86_400_000), ("7d", 604_800_000)] {
            assert_eq!(span(text), Some(Duration::from_millis(ms)));
        }
    }
}
