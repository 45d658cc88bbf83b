//! Addresses that we call.

use http::{HeaderValue, Uri};
use url::Url;

const MAX_URL_BYTES: usize = 2048;

/// The address, normalised, and the `Host` header for it (RFC 9112 section 3.2). The error is a sentence that begins with `key`.
pub(crate) fn http_address(key: &str, text: &str) -> Result<(Uri, HeaderValue), String> {
    let wrong = |allowed: &str| format!("{key} = {text:?}: allowed is {allowed}");
    if text.len() > MAX_URL_BYTES {
        return Err(format!("{key}: allowed are {MAX_URL_BYTES} bytes at most"));
    }
    let url = Url::parse(text).map_err(|error| format!("{key} = {text:?}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("http:// or https://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "{key}: a user or password does not belong into it; calls are signed"
        ));
    }
    if url.fragment().is_some() {
        return Err(wrong("an address without a fragment"));
    }
    let uri: Uri = url.as_str().parse().map_err(|_| wrong("an absolute address"))?;
    let authority = uri.authority().ok_or_else(|| wrong("an absolute address"))?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("an absolute address"))?;
    Ok((uri, host))
}

/// Whether what is sent there stays on this machine.
pub(crate) fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(host).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_told_from_others() {
        for (text, local) in [
            ("http://localhost:1/", true),
            ("http://127.9.0.1/", true),
            ("http://[::1]:8/", true),
            ("http://127.0.0.1.example.com/", false),
            ("http://localhost.example.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            let (uri, _) = http_address("url", text).unwrap();
            assert_eq!(is_loopback(&uri), local, "{text}");
        }
    }
}
