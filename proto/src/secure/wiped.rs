//! What `snow` computes with secrets, made to wipe itself: the ephemeral private key, on which forward secrecy hangs, the handshake's
//! AES keys, and what is hashed on the way to the next key. All of it is what `snow` itself would take.

use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes256Gcm, Tag};
use curve25519_dalek::MontgomeryPoint;
use sha2::digest::FixedOutputReset;
use sha2::{Digest, Sha256};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::KEY_BYTES;
use super::hkdf::{BLOCK_BYTES, HASH_BYTES, hkdf, hmac};
use super::records::{TAG_BYTES, nonce};

/// The default resolver for randomness, our own for the rest.
pub(super) struct Wiped;

impl CryptoResolver for Wiped {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<Hasher>::default() as Box<dyn Hash>)
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<Curve>::default() as Box<dyn Dh>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::<AesGcm>::default() as Box<dyn Cipher>)
    }
}

/// X25519 (RFC 7748).
#[derive(Default)]
struct Curve {
    private: Zeroizing<[u8; KEY_BYTES]>,
    public: [u8; KEY_BYTES],
}

impl Curve {
    fn publish(&mut self) {
        self.public = MontgomeryPoint::mul_base_clamped(*self.private).to_bytes();
    }
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        KEY_BYTES
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        self.publish();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(&mut *self.private)?;
        self.publish();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    /// `public` and `out` may be longer than a point: the rest is not ours.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let point = public.first_chunk().ok_or(Error::Dh)?;
        let out = out.first_chunk_mut().ok_or(Error::Dh)?;
        *out = MontgomeryPoint(*point).mul_clamped(*self.private).to_bytes();
        Ok(())
    }
}

/// AES-256-GCM with Noise's nonces.
#[derive(Default, ZeroizeOnDrop)]
struct AesGcm {
    key: [u8; KEY_BYTES],
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.key = *key;
    }

    fn encrypt(&self, n: u64, authenticated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (body, rest) = out.split_at_mut(plain.len());
        body.copy_from_slice(plain);
        let tag = Aes256Gcm::new(&self.key.into())
            .encrypt_in_place_detached(&nonce(n), authenticated, body)
            .expect("a handshake message is below AES-GCM's limit");
        rest[..TAG_BYTES].copy_from_slice(&tag);
        plain.len() + TAG_BYTES
    }

    fn decrypt(&self, n: u64, authenticated: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..body.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(body);
        Aes256Gcm::new(&self.key.into())
            .decrypt_in_place_detached(&nonce(n), authenticated, out, &Tag::from(*tag))
            .map_err(|_| Error::Decrypt)?;
        Ok(body.len())
    }
}

/// SHA-256, and HMAC and HKDF (Noise revision 34, section 4.3) with it. `out` may always be longer than a hash: the rest is not ours.
#[derive(Default)]
struct Hasher(Sha256);

impl Hash for Hasher {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        BLOCK_BYTES
    }

    fn hash_len(&self) -> usize {
        HASH_BYTES
    }

    fn reset(&mut self) {
        self.0 = Sha256::default();
    }

    fn input(&mut self, data: &[u8]) {
        Digest::update(&mut self.0, data);
    }

    fn result(&mut self, out: &mut [u8]) {
        FixedOutputReset::finalize_into_reset(&mut self.0, front(out).into());
    }

    fn hmac(&mut self, key: &[u8], data: &[u8], out: &mut [u8]) {
        *front(out) = *hmac(key, &[data]);
    }

    fn hkdf(
        &mut self,
        chaining_key: &[u8],
        secret: &[u8],
        outputs: usize,
        out1: &mut [u8],
        out2: &mut [u8],
        out3: &mut [u8],
    ) {
        // An output that is not asked for may be empty.
        match outputs {
            1 => hkdf(chaining_key, secret, &[], [front(out1)]),
            2 => hkdf(chaining_key, secret, &[], [front(out1), front(out2)]),
            _ => hkdf(chaining_key, secret, &[], [front(out1), front(out2), front(out3)]),
        }
    }
}

fn front(out: &mut [u8]) -> &mut [u8; HASH_BYTES] {
    out.first_chunk_mut().expect("snow gives room for a hash")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dh(resolver: &dyn CryptoResolver, private: &[u8; 32]) -> Box<dyn Dh> {
        let mut dh = resolver.resolve_dh(&DHChoice::Curve25519).unwrap();
        dh.set(private);
        dh
    }

    fn cipher(resolver: &dyn CryptoResolver, key: &[u8; 32]) -> Box<dyn Cipher> {
        let mut cipher = resolver.resolve_cipher(&CipherChoice::AESGCM).unwrap();
        cipher.set(key);
        cipher
    }

    proptest! {
        #[test]
        fn what_is_computed_is_what_snow_computes(key: [u8; 32], other: [u8; 32], n: u64, plain in prop::collection::vec(any::<u8>(), 0..50)) {
            let (ours, snows) = (dh(&Wiped, &key), dh(&DefaultResolver, &key));
            prop_assert_eq!(ours.pubkey(), snows.pubkey());
            prop_assert_eq!(ours.privkey(), snows.privkey());
            let (mut one, mut two) = ([0; 56], [0; 56]);
            ours.dh(&other, &mut one).unwrap();
            snows.dh(&other, &mut two).unwrap();
            prop_assert_eq!(one, two);

            let (ours, snows) = (cipher(&Wiped, &key), cipher(&DefaultResolver, &key));
            let (mut one, mut two) = ([0; 80], [0; 80]);
            let length = ours.encrypt(n, &other, &plain, &mut one);
            prop_assert_eq!(snows.encrypt(n, &other, &plain, &mut two), length);
            prop_assert_eq!(one, two);
            let mut back = [0; 50];
            prop_assert_eq!(ours.decrypt(n, &other, &one[..length], &mut back), Ok(plain.len()));
            prop_assert_eq!(&back[..plain.len()], &plain);
            one[length - 1] ^= 1;
            prop_assert_eq!(ours.decrypt(n, &other, &one[..length], &mut back), Err(Error::Decrypt));
        }

        #[test]
        fn what_is_hashed_is_what_snow_hashes(key: [u8; 32], data in prop::collection::vec(any::<u8>(), 0..200), outputs in 1..=3usize) {
            let run = |resolver: &dyn CryptoResolver| {
                let mut hash = resolver.resolve_hash(&HashChoice::SHA256).unwrap();
                let mut out = [[0; 64]; 5];
                let [digest, mac, one, two, three] = &mut out;
                hash.input(&key);
                hash.input(&data);
                hash.result(digest);
                hash.hmac(&key, &data, mac);
                hash.hkdf(&key, &data, outputs, one, two, three);
                (out, hash.name(), hash.block_len(), hash.hash_len())
            };
            prop_assert_eq!(run(&Wiped), run(&DefaultResolver));
        }
    }

    #[test]
    fn short_buffers_are_errors() {
        let (dh, cipher) = (dh(&Wiped, &[1; 32]), cipher(&Wiped, &[1; 32]));
        assert_eq!(dh.dh(&[0; 31], &mut [0; 32]), Err(Error::Dh));
        assert_eq!(dh.dh(&[0; 32], &mut [0; 31]), Err(Error::Dh));
        assert_eq!(cipher.decrypt(0, &[], &[0; 15], &mut []), Err(Error::Decrypt));
        assert_eq!(cipher.decrypt(0, &[], &[0; 17], &mut []), Err(Error::Decrypt));
    }
}
