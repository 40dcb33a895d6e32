//! Avro's binary encoding (Apache Avro 1.12 specification, "Binary Encoding"): members one after the other, without
//! names or numbers. What may be missing is a union whose first branch is null.

use super::Writer;

/// Digits behind the point in the schema's decimal; a value of the contract has no more, and 15 before it.
const SCALE: usize = 8;

/// Writes to the end of a value.
pub(super) struct Avro<'a>(pub(super) &'a mut Vec<u8>);

impl Avro<'_> {
    /// Zigzag, then seven bits a byte.
    fn long(&mut self, number: i64) {
        super::protobuf::varint(self.0, ((number << 1) ^ (number >> 63)) as u64);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.long(bytes.len() as i64);
        self.0.extend_from_slice(bytes);
    }

    /// The branch of a union of null and something; whether the something follows.
    fn branch<T>(&mut self, value: Option<T>) -> Option<T> {
        self.long(i64::from(value.is_some()));
        value
    }

    /// A map or list: one block with all, if there are any, and an empty one.
    fn block<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        if items.len() > 0 {
            self.long(items.len() as i64);
            items.for_each(|item| write(self, item));
        }
        self.long(0);
    }
}

impl Writer for Avro<'_> {
    fn text(&mut self, _: u32, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn optional(&mut self, number: u32, text: Option<&str>) {
        if let Some(text) = self.branch(text) {
            self.text(number, text);
        }
    }

    fn time(&mut self, _: u32, ms: u64) {
        self.long(ms as i64);
    }

    fn optional_time(&mut self, number: u32, ms: Option<u64>) {
        if let Some(ms) = self.branch(ms) {
            self.time(number, ms);
        }
    }

    fn decimal(&mut self, _: u32, text: Option<&str>) -> Result<(), String> {
        let Some(text) = self.branch(text) else { return Ok(()) };
        let unscaled = unscaled(text).ok_or("value is no decimal with at most 8 digits behind the point")?;
        let bytes = unscaled.to_be_bytes();
        // Two's complement in as few bytes as hold it: leading ones that only repeat the sign are left out.
        let is_needless = |at: usize| bytes[at] == if bytes[at + 1] < 0x80 { 0 } else { 0xff };
        let first = (0..bytes.len() - 1).find(|at| !is_needless(*at)).unwrap_or(bytes.len() - 1);
        self.bytes(&bytes[first..]);
        Ok(())
    }

    fn truth(&mut self, _: u32, holds: bool) {
        self.0.push(u8::from(holds));
    }

    fn map<'a>(&mut self, number: u32, entries: impl ExactSizeIterator<Item = (&'a str, &'a str)>) {
        self.block(entries, |to, (name, value)| {
            to.text(number, name);
            to.text(number, value);
        });
    }

    fn list<'a>(&mut self, number: u32, words: impl ExactSizeIterator<Item = &'a str>) {
        self.block(words, |to, word| to.text(number, word));
    }
}

/// A decimal times 10^8.
fn unscaled(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > SCALE || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    format!("{whole}{fraction:0<SCALE$}").parse().ok().map(|number: i128| sign * number)
}
