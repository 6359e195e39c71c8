//! Sums of keyed hashes: a commitment to a set of records that does not depend on their order and
//! takes constant time to update when one record changes (MSet-Add-Hash, Clarke, Devadas, van Dijk,
//! Gassend and Suh, ASIACRYPT 2003). A sum holds only while the key of the hashes and the sums stay
//! secret: 256 bits are enough then. Against an attacker who has the key, it proves nothing.

use std::fmt;

/// A sum modulo 2^256, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SetSum(pub [u8; 32]);

impl SetSum {
    /// Puts a record into the set.
    pub fn add(&mut self, element: &[u8; 32]) {
        let mut carry = false;
        self.combine(element, |digit, other| {
            let (sum, over) = digit.overflowing_add(other);
            let (sum, again) = sum.overflowing_add(u64::from(carry));
            carry = over | again;
            sum
        });
    }

    /// Takes a record out of the set.
    pub fn remove(&mut self, element: &[u8; 32]) {
        let mut borrow = false;
        self.combine(element, |digit, other| {
            let (difference, under) = digit.overflowing_sub(other);
            let (difference, again) = difference.overflowing_sub(u64::from(borrow));
            borrow = under | again;
            difference
        });
    }

    /// Combines both numbers in digits of 64 bits, the lowest first.
    fn combine(&mut self, element: &[u8; 32], mut with: impl FnMut(u64, u64) -> u64) {
        let (ours, _) = self.0.as_chunks_mut::<8>();
        let (theirs, _) = element.as_chunks::<8>();
        for (digit, other) in ours.iter_mut().zip(theirs) {
            *digit = with(u64::from_le_bytes(*digit), u64::from_le_bytes(*other)).to_le_bytes();
        }
    }
}

impl fmt::Debug for SetSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetSum({:02x}{:02x}..)", self.0[31], self.0[30])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sum_forgets_order_and_what_was_taken_out(
            elements in proptest::collection::vec(any::<[u8; 32]>(), 1..20),
        ) {
            let (mut forward, mut backward) = (SetSum::default(), SetSum::default());
            elements.iter().for_each(|e| forward.add(e));
            elements.iter().rev().for_each(|e| backward.add(e));
            prop_assert_eq!(forward, backward);
            elements.iter().for_each(|e| forward.remove(e));
            prop_assert_eq!(forward, SetSum::default());
        }
    }
}
