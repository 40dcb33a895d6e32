//! The conversion's value: a decimal kept as text. Never a float, never guessed.

use std::borrow::Cow;

/// Most integer digits: with 8 fraction digits it fits DECIMAL(23,8).
const INTEGER_DIGITS: usize = 15;
const FRACTION_DIGITS: usize = 8;

/// Reads `^[+-]?[0-9]+(\.[0-9]+)?$` after trimming, at most 15 integer digits (leading zeros not counted) and 8
/// fraction digits. Returns the canonical text: no `+`, no leading zeros; fraction digits and `-` kept.
pub fn parse(text: &str) -> Option<Cow<'_, str>> {
    let text = text.trim();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (integer, fraction) = match digits.split_once('.') {
        Some((integer, fraction)) if !fraction.is_empty() => (integer, fraction),
        Some(_) => return None,
        None => (digits, ""),
    };
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if integer.is_empty() || !all_digits(integer) || !all_digits(fraction) || fraction.len() > FRACTION_DIGITS {
        return None;
    }
    let zeros = integer.bytes().take(integer.len() - 1).take_while(|byte| *byte == b'0').count();
    if integer.len() - zeros > INTEGER_DIGITS {
        return None;
    }
    let canonical = &digits[zeros..];
    Some(if !negative {
        Cow::Borrowed(canonical)
    } else if zeros == 0 {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("-{canonical}"))
    })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_decimal_is_refused() {
        let bad = [
            "",
            " ",
            "+",
            "-",
            ".",
            ".5",
            "5.",
            "1,5",
            "1,234.50",
            "1e3",
            "0x1",
            "--1",
            "1 2",
            "١",
            "NaN",
            "[V]",
            "1234567890123456",
            "1.123456789",
            "1.2.3",
            "\u{a0}x",
        ];
        for text in bad {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_canonical_form() {
        let good = [
            ("0.01", "0.01"),
            ("12.3400", "12.3400"),
            ("-5", "-5"),
            ("+007.50", "7.50"),
            ("000", "0"),
            ("-00.0", "-0.0"),
            (" 1.5\n", "1.5"),
            ("000123456789012345.12345678", "123456789012345.12345678"),
        ];
        for (text, canonical) in good {
            assert_eq!(parse(text).as_deref(), Some(canonical), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(text in "[+-]?[0-9]{1,15}(\\.[0-9]{1,8})?") {
            let canonical = parse(&text).unwrap().into_owned();
            prop_assert_eq!(parse(&canonical), Some((&canonical[..]).into()));
            let strip = |text: &str| text.trim_start_matches(['+', '-']).trim_start_matches('0').to_owned();
            prop_assert_eq!(strip(&canonical), strip(&text));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            let _ = parse(&text);
        }
    }
}
