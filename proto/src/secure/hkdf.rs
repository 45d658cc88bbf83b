//! HKDF-SHA256 that leaves nothing behind. The crates `hkdf` and `hmac` do not wipe what they compute on the way: of a master key that is
//! what all device keys follow from.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub(super) const HASH_BYTES: usize = 32;
pub(super) const BLOCK_BYTES: usize = 64;

const INNER: u8 = 0x36;
const OUTER: u8 = 0x5c;

/// RFC 5869 in 32-byte pieces, one for each output; at most 255. With an empty `info` it is Noise's HKDF, whose chaining key is the salt.
pub(super) fn hkdf<const N: usize>(
    salt: &[u8],
    secret: &[u8],
    info: &[u8],
    outputs: [&mut [u8; HASH_BYTES]; N],
) {
    const { assert!(N <= 255) };
    let extracted = hmac(salt, &[secret]);
    let mut last: &[u8] = &[];
    for (number, output) in (1..).zip(outputs) {
        *output = *hmac(&*extracted, &[last, info, &[number]]);
        last = output;
    }
}

/// RFC 2104, with a key of at most a block.
pub(super) fn hmac(key: &[u8], data: &[&[u8]]) -> Zeroizing<[u8; HASH_BYTES]> {
    debug_assert!(key.len() <= BLOCK_BYTES);
    let inner = hash(key, INNER, data);
    hash(key, OUTER, &[&*inner])
}

fn hash(key: &[u8], pad: u8, data: &[&[u8]]) -> Zeroizing<[u8; HASH_BYTES]> {
    let mut block = Zeroizing::new([pad; BLOCK_BYTES]);
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
    let mut sha = Sha256::new_with_prefix(block.as_slice());
    for part in data {
        Digest::update(&mut sha, part);
    }
    let mut out = Zeroizing::new([0; HASH_BYTES]);
    Digest::finalize_into(sha, (&mut *out).into());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::hkdf::Hkdf;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_hkdf_that_everybody_computes(
            salt in prop::collection::vec(any::<u8>(), 0..=BLOCK_BYTES),
            secret in prop::collection::vec(any::<u8>(), 0..100),
            info in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut wanted = [0; 3 * HASH_BYTES];
            Hkdf::<Sha256>::new(Some(&salt), &secret).expand(&info, &mut wanted).unwrap();
            let [mut one, mut two, mut three] = [[0; HASH_BYTES]; 3];
            hkdf(&salt, &secret, &info, [&mut one, &mut two, &mut three]);
            prop_assert_eq!([one, two, three].concat(), wanted);
        }
    }
}
