//! Padding hides lengths: the store sees padded lengths only.

/// Contents are padded to at least this many bytes.
pub const MIN_CONTENT: u64 = 256;

/// The stored length of a content of `length` bytes: Padmé (Nikitin et al., PURBs, 2019), which
/// leaks O(log log length) bits and costs at most 12 %, and at least 256 bytes.
pub fn padded_content(length: u64) -> u64 {
    if length <= MIN_CONTENT {
        return MIN_CONTENT;
    }
    let exponent = length.ilog2();
    let mantissa = exponent.ilog2() + 1;
    let mask = (1u64 << (exponent - mantissa)) - 1;
    length.checked_add(mask).map_or(length, |sum| sum & !mask)
}

/// The stored length of attributes of `length` bytes: the next multiple of 256.
pub fn padded_attributes(length: usize) -> usize {
    length.next_multiple_of(256).max(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_never_shortens_and_costs_at_most_twelve_percent() {
        for length in (0..100_000).chain((1 << 20)..(1 << 20) + 5000) {
            let padded = padded_content(length);
            assert!(padded >= length);
            assert!(
                length <= MIN_CONTENT || padded * 100 <= length * 112,
                "{length} -> {padded}"
            );
            assert_eq!(padded_content(padded), padded);
        }
        assert_eq!(padded_content(0), 256);
        assert_eq!(padded_content(257), 272);
        assert_eq!(padded_content(1000), 1024);
        assert_eq!(padded_content(u64::MAX), u64::MAX);
    }
}
