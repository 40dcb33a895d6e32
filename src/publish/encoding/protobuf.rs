//! Protobuf's encoding (<https://protobuf.dev/programming-guides/encoding/>): members with their numbers; what is
//! missing, empty or false is left out.

use super::Writer;

/// Wire types.
const VARINT: u32 = 0;
const LENGTH: u32 = 2;

/// Writes to the end of a value.
pub(super) struct Protobuf<'a>(pub(super) &'a mut Vec<u8>);

/// Seven bits a byte, the lowest first.
pub(super) fn varint(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// How many bytes that takes.
fn length(number: usize) -> usize {
    (number.max(1).ilog2() / 7 + 1) as usize
}

impl Protobuf<'_> {
    fn tag(&mut self, number: u32, wire: u32) {
        varint(self.0, u64::from(number << 3 | wire));
    }

    fn bytes(&mut self, number: u32, text: &str) {
        self.tag(number, LENGTH);
        varint(self.0, text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }
}

impl Writer for Protobuf<'_> {
    fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(number, text);
        }
    }

    fn optional(&mut self, number: u32, text: Option<&str>) {
        if let Some(text) = text {
            self.bytes(number, text);
        }
    }

    fn time(&mut self, number: u32, ms: u64) {
        self.optional_time(number, Some(ms).filter(|ms| *ms != 0));
    }

    fn optional_time(&mut self, number: u32, ms: Option<u64>) {
        if let Some(ms) = ms {
            self.tag(number, VARINT);
            varint(self.0, ms);
        }
    }

    fn decimal(&mut self, number: u32, text: Option<&str>) -> Result<(), String> {
        self.optional(number, text);
        Ok(())
    }

    fn truth(&mut self, number: u32, holds: bool) {
        if holds {
            self.tag(number, VARINT);
            self.0.push(1);
        }
    }

    /// Each entry is a message of two texts.
    fn map<'a>(&mut self, number: u32, entries: impl ExactSizeIterator<Item = (&'a str, &'a str)>) {
        for (name, value) in entries {
            let of = |text: &str| 1 + length(text.len()) + text.len();
            self.tag(number, LENGTH);
            varint(self.0, (of(name) + of(value)) as u64);
            self.bytes(1, name);
            self.bytes(2, value);
        }
    }

    fn list<'a>(&mut self, number: u32, words: impl ExactSizeIterator<Item = &'a str>) {
        words.for_each(|word| self.bytes(number, word));
    }
}
