//! How far a request's head has come, seen from outside of the HTTP parser: no line of it may be too long for that.

/// Above this a target is no target for the parser, and the name of a header makes it panic.
const PARSER_LINE_BYTES: usize = u16::MAX as usize - 1;

/// What has come of a request's head: of the first, if several come before an answer.
#[derive(Clone, Copy, Default)]
pub(super) struct Head {
    /// It is a `GET`.
    pub(super) is_get: bool,
    /// Ended lines.
    pub(super) lines: usize,
    /// Of the line that has not ended.
    line_bytes: usize,
    /// What comes now is none of it.
    pub(super) is_whole: bool,
}

impl Head {
    /// A head that begins with these bytes, none of them taken.
    pub(super) fn of(bytes: &[u8]) -> Head {
        Head { is_get: bytes.starts_with(b"GET "), ..Head::default() }
    }

    /// Takes further bytes; whether a line of the head is too long for the parser.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        // All at once, as nearly always, and too short for anything to be too long.
        if self.lines == 0 && self.line_bytes == 0 && bytes.len() <= PARSER_LINE_BYTES && bytes.ends_with(b"\r\n\r\n") {
            self.is_whole = true;
            return false;
        }
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line_bytes = self.line_bytes + end;
            if line_bytes > PARSER_LINE_BYTES {
                return true;
            }
            // An empty line, with or without \r, ends the head. Before the first line the parser skips it.
            let is_blank = line_bytes <= 1;
            if is_blank && self.lines > 0 {
                self.is_whole = true;
                return false;
            }
            self.lines += usize::from(!is_blank);
            self.line_bytes = 0;
            rest = &rest[end + 1..];
        }
        self.line_bytes += rest.len();
        self.line_bytes > PARSER_LINE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a head is cut on its way, its longest line is seen, and nothing behind its end is judged.
        #[test]
        fn a_line_is_too_long_in_any_pieces(
            lines in proptest::collection::vec(prop_oneof![9 => 2usize..300, 1 => 65_000usize..66_000], 0..6),
            is_ended: bool,
            cuts in proptest::collection::vec(1usize..30_000, 1..20),
        ) {
            let mut bytes = b"\r\n".to_vec();
            for line_bytes in &lines {
                bytes.extend(std::iter::repeat_n(b'x', line_bytes - 1).chain(*b"\r\n"));
            }
            if is_ended {
                bytes.extend(b"\r\n");
                bytes.extend([b'y'; 70_000]);
            }
            let (mut head, mut is_over, mut rest) = (Head::default(), false, &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() || is_over || head.is_whole {
                    break;
                }
                let (piece, left) = rest.split_at(rest.len().min(*cut));
                is_over = head.take(piece);
                rest = left;
            }
            let mut is_long = lines.iter().any(|line_bytes| *line_bytes > PARSER_LINE_BYTES);
            // Without a line before it, an empty one ends nothing.
            is_long |= is_ended && lines.is_empty();
            prop_assert_eq!(is_over, is_long);
            prop_assert_eq!(head.is_whole, is_ended && !is_long);
        }
    }
}
