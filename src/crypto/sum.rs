//! Sums of keyed hashes: an order-free commitment to a set of records that one record's change
//! updates in constant time (AdHash, Bellare and Micciancio 1997; keyed, so that no one without
//! the key can find a set with the same sum).

use std::fmt;

/// A sum modulo 2^256, little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct SetSum(pub [u8; 32]);

impl SetSum {
    /// Puts a record into the set.
    pub fn add(&mut self, element: &[u8; 32]) {
        let mut carry = 0u16;
        for (digit, other) in self.0.iter_mut().zip(element) {
            let sum = u16::from(*digit) + u16::from(*other) + carry;
            *digit = (sum & 0xff) as u8;
            carry = sum >> 8;
        }
    }

    /// Takes a record out of the set.
    pub fn remove(&mut self, element: &[u8; 32]) {
        let mut borrow = 0i16;
        for (digit, other) in self.0.iter_mut().zip(element) {
            let difference = i16::from(*digit) - i16::from(*other) - borrow;
            *digit = (difference & 0xff) as u8;
            borrow = i16::from(difference < 0);
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
