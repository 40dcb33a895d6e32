//! Time and identity of records: timestamps, the clock seam, UUIDv7.
//!
//! The only file that asks the operating system for the time; everything else is handed a `Clock` or a `Timestamp`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(pub u64);

/// Length of an RFC 3339 UTC timestamp with milliseconds: `2026-11-24T05:00:41.123Z`.
pub const RFC3339_BYTES: usize = 24;

impl Timestamp {
    /// The largest time that the four-digit year of RFC 3339 can hold: 9999-12-31T23:59:59.999Z.
    pub const MAX: Timestamp = Timestamp(253_402_300_799_999);

    /// RFC 3339, UTC, milliseconds. Later times than [`Timestamp::MAX`] are shown as it.
    pub fn rfc3339(self) -> [u8; RFC3339_BYTES] {
        let ms = self.0.min(Self::MAX.0);
        let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
        let (year, month, day) = civil_from_days(days);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        put_digits(&mut text[0..4], year);
        put_digits(&mut text[5..7], month);
        put_digits(&mut text[8..10], day);
        put_digits(&mut text[11..13], in_day / 3_600_000);
        put_digits(&mut text[14..16], in_day / 60_000 % 60);
        put_digits(&mut text[17..19], in_day / 1000 % 60);
        put_digits(&mut text[20..23], in_day % 1000);
        text
    }

    /// The same as a `String`, for cold paths.
    pub fn to_rfc3339(self) -> String {
        String::from_utf8_lossy(&self.rfc3339()).into_owned()
    }
}

impl Timestamp {
    /// Reads what [`Timestamp::rfc3339`] writes, and nothing else.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second, ms) = (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
        let days = days_from_civil(year, month, day)?;
        let time = Timestamp((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms);
        // Only what is written so comes out the same.
        (time.rfc3339() == *text.as_bytes()).then_some(time)
    }
}

fn put_digits(slot: &mut [u8], mut number: u64) {
    for byte in slot.iter_mut().rev() {
        *byte = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Days since 1970-01-01 to (year, month, day); Howard Hinnant's `civil_from_days`, for days not before the epoch.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// The same the other way round; `None` for days before the epoch and months that are none.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let shifted_month = if month > 2 { month.checked_sub(3)? } else { month + 9 };
    let year = year.checked_sub(u64::from(month <= 2))?;
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_469)
}

/// Where time comes from, so that tests can move it.
pub trait Clock: Send + Sync {
    /// Wall-clock time; may jump either way.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment; never runs backwards.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(since_epoch.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }
}

/// A UUIDv7 (RFC 9562 §5.7) of a given time and 80 random bits (of which 74 are used).
pub fn uuid_v7(time: Timestamp, random: [u8; 10]) -> [u8; 16] {
    uuid::Builder::from_unix_timestamp_millis(time.0, &random).into_uuid().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        let check = |ms: u64, text: &str| assert_eq!(Timestamp(ms).to_rfc3339(), text);
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_795_496_441_123, "2026-11-24T05:00:41.123Z");
        check(u64::MAX, "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn what_is_no_moment_is_not_read() {
        for bad in [
            "",
            "2026-11-24",
            "2026-11-24T05:00:41Z",
            "2026-11-24T05:00:41.123+",
            "2026-02-29T05:00:41.123Z",
            "2026-13-01T05:00:41.123Z",
            "2026-00-01T05:00:41.123Z",
            "2026-11-00T05:00:41.123Z",
            "2026-11-24T24:00:41.123Z",
            "1969-12-31T23:59:59.999Z",
            "+026-11-24T05:00:41.123Z",
            "2026-11-24T05:00:41.123Z ",
            "2026-11-2\u{660}T05:00:41.12Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(ms in 0..=Timestamp::MAX.0) {
            prop_assert_eq!(Timestamp::parse(&Timestamp(ms).to_rfc3339()), Some(Timestamp(ms)));
        }

        #[test]
        fn text_sorts_as_time_does(a in 0..Timestamp::MAX.0, b in 0..Timestamp::MAX.0) {
            prop_assert_eq!(Timestamp(a).rfc3339().cmp(&Timestamp(b).rfc3339()), a.cmp(&b));
        }

        #[test]
        fn uuids_carry_version_variant_and_time(ms in 0..1u64 << 48, random: [u8; 10]) {
            let id = uuid_v7(Timestamp(ms), random);
            prop_assert_eq!(id[6] >> 4, 7);
            prop_assert_eq!(id[8] >> 6, 2);
            let mut time = [0; 8];
            time[2..].copy_from_slice(&id[..6]);
            prop_assert_eq!(u64::from_be_bytes(time), ms);
        }
    }
}
