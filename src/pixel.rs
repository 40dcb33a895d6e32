//! The names of pixels. A `PixelId` is checked once, here, and never again.

use std::fmt;

/// A pixel id: `^[1-9][0-9]{0,19}$` (contract §3). Twenty digits exceed 64 bits, hence 128.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PixelId(u128);

impl PixelId {
    /// Reads the digits of an id; `None` for anything but 1 to 20 ASCII digits without a leading zero.
    pub fn parse(text: &[u8]) -> Option<PixelId> {
        if text.is_empty() || text.len() > 20 || text.first() == Some(&b'0') {
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
        for good in ["1", "6014360342904", "99999999999999999999"] {
            assert_eq!(PixelId::parse(good.as_bytes()).map(|id| id.to_string()).as_deref(), Some(good));
        }
    }
}
