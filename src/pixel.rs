//! The names of pixels. A `PixelId` is checked once, here, and never again.

use std::fmt;

/// Most digits of a pixel id.
pub const MAX_DIGITS: usize = 20;

/// A pixel id: `^[1-9][0-9]{0,19}$` (contract §3). Twenty digits exceed 64 bits, hence 128.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PixelId(u128);

impl PixelId {
    /// Reads the digits of an id; `None` for anything but 1 to 20 ASCII digits without a leading zero.
    pub fn parse(text: &[u8]) -> Option<PixelId> {
        if text.is_empty() || text.len() > MAX_DIGITS || text.first() == Some(&b'0') {
            return None;
        }
        let mut number = 0u128;
        for byte in text {
            if !byte.is_ascii_digit() {
                return None;
            }
            number = number * 10 + u128::from(byte - b'0');
        }
        Some(PixelId(number))
    }

    /// Its digits, written into the end of `buffer`.
    pub fn digits(self, buffer: &mut [u8; MAX_DIGITS]) -> &[u8] {
        let mut at = MAX_DIGITS;
        let mut high = self.0;
        // Division of 128 bits is slow; all but the longest ids fit 64.
        while high > u128::from(u64::MAX) {
            at -= 1;
            buffer[at] = b'0' + (high % 10) as u8;
            high /= 10;
        }
        let mut low = high as u64;
        loop {
            at -= 1;
            buffer[at] = b'0' + (low % 10) as u8;
            low /= 10;
            if low == 0 {
                return &buffer[at..];
            }
        }
    }
}

impl PixelId {
    /// Its number, as bytes of a fixed length.
    pub fn to_le_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

impl fmt::Display for PixelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PixelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A known pixel, as the hot path sees it. All fields but `id` may be unknown (static or learnt pixels).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pixel {
    /// The id that websites send.
    pub id: PixelId,
    /// Name given by the page owner: hostile text, any UTF-8 up to 255 characters.
    pub name: Option<String>,
    /// Tag in lower case, such as `checkout`.
    pub tag: Option<String>,
    /// The ad account that owns it.
    pub ad_account_id: Option<String>,
    /// Known, but no longer in use: its events are rejected with `archived_pixel`.
    pub archived: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_to_twenty_digits_without_a_leading_zero() {
        for bad in ["", "0", "01", "-1", "+1", " 1", "1 ", "1a", "١", "111111111111111111111"] {
            assert_eq!(PixelId::parse(bad.as_bytes()), None, "{bad:?}");
        }
        for good in ["1", "6014360342904", "18446744073709551615", "18446744073709551616", "99999999999999999999"] {
            let id = PixelId::parse(good.as_bytes()).unwrap();
            assert_eq!(id.to_string(), good);
            assert_eq!(id.digits(&mut [0; MAX_DIGITS]), good.as_bytes());
        }
    }
}
