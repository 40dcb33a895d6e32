//! Sizes, durations and rates as operators write them, and the way back.

use std::time::Duration;

use toml::{Table, Value};

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

/// The shortest way to write bytes exactly.
pub fn write_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// The shortest way to write a duration of whole milliseconds.
pub(super) fn write_span(span: Duration) -> String {
    const UNITS: [(&str, u128); 3] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let ms = span.as_millis();
    if ms == 0 {
        return "0s".to_owned();
    }
    match UNITS.iter().find(|(_, factor)| ms.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", ms / factor),
        None => format!("{ms}ms"),
    }
}

/// So many per unit of time, and so many at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// Refills in each `per`.
    pub rate: u32,
    /// A second, a minute or an hour.
    pub per: Duration,
    /// Most at once.
    pub burst: u32,
}

impl Limit {
    /// `{ rate = "200/s", burst = 1000 }`, both given, nothing else.
    pub(super) fn from_table(table: &Table) -> Option<Limit> {
        let burst = table.get("burst")?;
        let burst = burst.as_integer().or_else(|| burst.as_str()?.trim().parse().ok())?;
        let burst = u32::try_from(burst).ok().filter(|burst| *burst > 0)?;
        let (rate, per) = rate(table.get("rate")?.as_str()?.trim())?;
        (table.len() == 2).then_some(Limit { rate, per, burst })
    }

    pub(super) fn to_table(self) -> Table {
        let unit = write_span(self.per);
        let rate = Value::String(format!("{}/{}", self.rate, unit.trim_start_matches('1')));
        Table::from_iter([("rate".to_owned(), rate), ("burst".to_owned(), Value::Integer(self.burst.into()))])
    }
}

/// `100/s`, `6000/m`, `1/h`.
fn rate(text: &str) -> Option<(u32, Duration)> {
    let (number, unit) = text.split_once('/')?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let number = number.parse().ok().filter(|number| *number > 0)?;
    Some((number, Duration::from_secs(seconds)))
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
    fn what_is_written_is_read_again() {
        for (value, text) in [(0, "0B"), (1000, "1000B"), (1024, "1KiB"), (64 << 20, "64MiB"), (3 << 40, "3TiB")] {
            assert_eq!((write_bytes(value).as_str(), bytes(text)), (text, Some(value)));
        }
        for (ms, text) in
            [(0, "0s"), (1, "1ms"), (1500, "1500ms"), (60_000, "1m"), (90_000, "90s"), (86_400_000, "24h")]
        {
            let value = Duration::from_millis(ms);
            assert_eq!((write_span(value).as_str(), span(text)), (text, Some(value)));
        }
        for text in ["rate = '200/s'\nburst = 1000", "rate = '5/m'\nburst = 1", "rate = '1/h'\nburst = '7'"] {
            let limit = Limit::from_table(&text.parse().unwrap()).unwrap();
            assert_eq!(Limit::from_table(&limit.to_table()), Some(limit));
        }
        for bad in ["rate = '200'\nburst = 1", "rate = '0/s'\nburst = 1", "rate = '1/s'\nburst = 0", "rate = '1/s'"] {
            assert_eq!(Limit::from_table(&bad.parse().unwrap()), None, "{bad}");
        }
    }

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
