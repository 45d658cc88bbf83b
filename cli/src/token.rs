//! `holdfast token`: device tokens.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use crate::args::TokenArgs;
use crate::files;
use crate::layout::Layout;

pub(crate) fn run(dir: &Path, args: &TokenArgs) -> Result<ExitCode> {
    let signer = Signer::open(&Layout::new(dir)?.token_key())?;
    writeln!(std::io::stdout(), "{}", signer.sign(&args.device, args.ttl)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes tokens with one private key.
pub(crate) struct Signer(EncodingKey);

impl Signer {
    /// Reads an Ed25519 private key (PKCS #8, PEM).
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let pem = files::read_if_there(path)?
            .ok_or_else(|| anyhow!("{} does not exist (`holdfast up` makes it)", path.display()))?;
        let key = EncodingKey::from_ed_pem(pem.as_bytes())
            .with_context(|| format!("{} is not an Ed25519 private key", path.display()))?;
        Ok(Self(key))
    }

    /// A JWT (RFC 7519) that says who the device is until `ttl` from now.
    pub(crate) fn sign(&self, device: &str, ttl: Duration) -> Result<String> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?;
        let claims = Claims {
            sub: device,
            iat: now.as_secs(),
            exp: (now + ttl).as_secs(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.0)
            .context("cannot sign the token")
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    iat: u64,
    exp: u64,
}
