//! What a stranger shows before any key is involved: credentials, identities, keys and control records. What is taken
//! has one form, and a credential that is no forgery by its form is one by its key.
#![no_main]

use std::sync::LazyLock;

use holdfast_proto::secure::{
    ControlRecord, Credential, DeviceKey, HandshakeError, Identity, MasterKey, SecureChannel, Verified,
};
use libfuzzer_sys::fuzz_target;

static MASTER: LazyLock<MasterKey> = LazyLock::new(|| MasterKey::from_bytes(&[7; 32]).expect("32 bytes"));

fuzz_target!(|data: &[u8]| {
    if let Ok((identity, length)) = Identity::decode(data) {
        assert_eq!(identity.check(), Ok(()));
        assert_eq!(identity.encode(), &data[..length]);
    }
    if let Ok(credential) = Credential::parse(data) {
        assert_eq!(credential.identity.encode(), credential.identity_bytes());
        let key = MASTER.device_key(&credential.identity);
        let refused = Verified::verify(SecureChannel::Ws, &credential, &key).err();
        assert_eq!(refused, Some(HandshakeError::NotAuthentic));
    }
    if let Ok(record) = ControlRecord::decode(data) {
        assert_eq!(record.encode(), data);
    }
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(key) = text.parse::<DeviceKey>() {
        assert_eq!(key.to_text(), text);
    }
});
