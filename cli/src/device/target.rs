//! Where to connect, over what, and what to show there.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use holdfast_client::{Builder, Device, DeviceKey, Tls};
use zeroize::Zeroizing;

use crate::args::{DeviceArgs, DeviceChannel, KeyOf};
use crate::files;
use crate::key::{self, MasterKeys};
use crate::token::Signer;
use crate::up_json::UpJson;

/// What is not given comes from DIR; with everything given no gateway need run there.
pub(super) fn find(dir: &Path, args: &DeviceArgs) -> Result<Builder> {
    match channel(args)? {
        DeviceChannel::Wss => wss(dir, args),
        DeviceChannel::Ws => by_key(dir, args, |up| &up.ws),
        DeviceChannel::Udp => by_key(dir, args, |up| &up.udp),
    }
}

/// The URL decides; what does not go with it is said before anything is sent.
fn channel(args: &DeviceArgs) -> Result<DeviceChannel> {
    let by_key = by_key_options(args);
    let on_wss = [("--ca", args.ca.is_some()), ("--token", args.token.is_some())];
    let given = |options: &[(&'static str, bool)]| options.iter().find(|(_, is)| *is).map(|(name, _)| *name);
    let by_url = match args.url.as_deref() {
        Some(url) if url.starts_with("ws://") => Some(DeviceChannel::Ws),
        Some(url) if url.starts_with("wss://") => Some(DeviceChannel::Wss),
        Some(url) if url.starts_with("udp://") => Some(DeviceChannel::Udp),
        Some(url) => bail!("--url {url}: it begins with ws://, wss:// or udp://"),
        None => None,
    };
    if let (Some(by_url), Some(asked)) = (by_url, args.channel)
        && by_url != asked
    {
        bail!("--url and --channel name different channels");
    }
    let by_options = given(&by_key).map(|_| DeviceChannel::Ws);
    let channel = by_url
        .or(args.channel)
        .or(by_options)
        .unwrap_or(DeviceChannel::Wss);
    match (channel, given(&by_key), given(&on_wss)) {
        (DeviceChannel::Wss, Some(option), _) => {
            bail!("{option} is for ws and udp; on wss a device shows a token")
        }
        (DeviceChannel::Ws | DeviceChannel::Udp, _, Some(option)) => {
            bail!("{option} is for wss; on ws and udp a device proves that it holds its key")
        }
        _ => Ok(channel),
    }
}

fn by_key_options(args: &DeviceArgs) -> [(&'static str, bool); 7] {
    let (key, of) = (&args.key, &args.key.of);
    [
        ("--key", key.key.is_some()),
        ("--key-file", key.key_file.is_some()),
        ("--master-key-file", key.master_key_file.is_some()),
        ("--product", !of.product.is_empty()),
        ("--class", !of.class.is_empty()),
        ("--key-id", of.key_id.is_some()),
        ("--key-version", of.key_version != FIRST_VERSION),
    ]
}

fn wss(dir: &Path, args: &DeviceArgs) -> Result<Builder> {
    let up = match (&args.url, &args.ca, &args.token) {
        (Some(_), Some(_), Some(_)) => None,
        _ => Some(UpJson::read(dir)?),
    };
    let url = url(args, up.as_ref().map(|up| &up.wss))?;
    let builder = match &args.token {
        Some(token) => Device::builder(url, token.clone()),
        None => {
            let path = up.as_ref().map(|up| up.token_key.clone()).unwrap_or_default();
            let (signer, device) = (Signer::open(&path)?, args.device.clone());
            // Made anew for each attempt, so that it never expires on a device that runs for long.
            Device::builder_with_token_provider(url, move || {
                signer
                    .sign(&device, TOKEN_TTL)
                    .map_err(|e| format!("{e:#}").into())
            })
        }
    };
    let ca = args.ca.clone().or_else(|| up.map(|up| up.ca)).unwrap_or_default();
    let pem = std::fs::read(&ca).with_context(|| format!("cannot read {}", ca.display()))?;
    Ok(builder.tls(Tls::from_ca_pem(&pem)?))
}

fn by_key(dir: &Path, args: &DeviceArgs, of_up: fn(&UpJson) -> &String) -> Result<Builder> {
    let given = &args.key;
    let has_key = given.key.is_some() || given.key_file.is_some() || given.master_key_file.is_some();
    let up = match (&args.url, has_key) {
        (Some(_), true) => None,
        _ => Some(UpJson::read(dir)?),
    };
    let url = url(args, up.as_ref().map(of_up))?;
    let key = match (&given.key, &given.key_file) {
        (Some(key), _) => Some(Zeroizing::new(key.clone())),
        (None, Some(path)) => Some(read_key(path)?),
        (None, None) => None,
    };
    let (identity, key) = match key {
        Some(key) => one_key(&args.device, &key, &given.of)?,
        None => {
            let path = given.master_key_file.clone();
            let path = path.or_else(|| up.map(|up| up.master_key)).unwrap_or_default();
            MasterKeys::open(&path)?.derive(&args.device, &given.of)?
        }
    };
    Ok(Device::builder_with_key(url, identity, key))
}

fn one_key(device: &str, key: &str, of: &KeyOf) -> Result<(holdfast_client::Identity, DeviceKey)> {
    let missing = || anyhow!("--key-id: from which master key the device's key was derived");
    let key_id = of.key_id.as_deref().ok_or_else(missing)?;
    let key = key.trim().parse().context("the device's key")?;
    Ok((key::identity(device, key_id, of)?, key))
}

fn read_key(path: &Path) -> Result<Zeroizing<String>> {
    let text = files::read_secret_if_there(path)?;
    text.ok_or_else(|| anyhow!("{} does not exist", path.display()))
}

fn url(args: &DeviceArgs, up: Option<&String>) -> Result<String> {
    let url = args.url.as_ref().or(up).cloned().unwrap_or_default();
    if url.is_empty() {
        bail!("the gateway that runs here is of an earlier version and does not listen on this channel");
    }
    Ok(url)
}

const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);
/// The default of --key-version.
const FIRST_VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    const KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";

    fn parse(options: &[&str]) -> Result<DeviceArgs, String> {
        let all = ["holdfast", "device"].iter().chain(options);
        let args = Args::try_parse_from(all).map_err(|error| error.to_string())?;
        match args.command {
            Command::Device(args) => Ok(args),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn the_url_or_the_options_decide_the_channel() {
        for (options, expected) in [
            (&[][..], DeviceChannel::Wss),
            (&["--channel", "ws"], DeviceChannel::Ws),
            (&["--url", "ws://h"], DeviceChannel::Ws),
            (&["--url", "wss://h"], DeviceChannel::Wss),
            (&["--channel", "udp", "--product", "lamp"], DeviceChannel::Udp),
            (&["--url", "udp://h:1"], DeviceChannel::Udp),
            (&["--product", "lamp"], DeviceChannel::Ws),
            (&["--key", KEY, "--key-id", "k1"], DeviceChannel::Ws),
            (&["--token", "t"], DeviceChannel::Wss),
        ] {
            assert_eq!(
                channel(&parse(options).unwrap()).unwrap(),
                expected,
                "{options:?}"
            );
        }
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        for (options, wanted) in [
            (&["--url", "ws://h", "--channel", "wss"][..], "different channels"),
            (&["--url", "http://h"], "begins with ws://, wss:// or udp://"),
            (&["--url", "ws://h", "--token", "t"], "--token is for wss"),
            (&["--channel", "ws", "--ca", "f"], "--ca is for wss"),
            (&["--channel", "udp", "--token", "t"], "--token is for wss"),
            (&["--url", "udp://h:1", "--channel", "ws"], "different channels"),
            (&["--url", "wss://h", "--key-id", "k1"], "--key-id is for ws"),
            (
                &["--channel", "wss", "--key-version", "2"],
                "--key-version is for ws",
            ),
            (&["--token", "t", "--class", "c"], "--token is for wss"),
        ] {
            let error = channel(&parse(options).unwrap()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{options:?}: {error}");
        }
        assert!(parse(&["--key", KEY]).err().unwrap().contains("--key-id"));
        assert!(parse(&["--key", KEY, "--key-id", "k1", "--key-file", "f"]).is_err());
    }

    #[test]
    fn a_key_needs_no_gateway_here() {
        let nowhere = Path::new("/nowhere");
        for url in ["ws://h:1", "udp://h:1"] {
            let args = parse(&["--url", url, "--key-id", "k1", "--key", KEY]).unwrap();
            assert!(find(nowhere, &args).is_ok(), "{url}");
        }
        let base = ["--url", "ws://h:1", "--key-id", "k1"];
        let find = |more: &[&str]| {
            let args = parse(&[&base[..], more].concat()).unwrap();
            find(nowhere, &args)
                .map(drop)
                .map_err(|error| format!("{error:#}"))
        };
        assert_eq!(find(&["--key", KEY]), Ok(()));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{KEY}\n")).unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(find(&["--key-file", path]), Ok(()));
        assert!(find(&["--key", "short"]).unwrap_err().contains("a key is 43"));
        assert!(
            find(&["--key-file", "/nowhere/key"])
                .unwrap_err()
                .contains("does not exist")
        );
        assert!(
            find(&["--key", KEY, "--product", "a b"])
                .unwrap_err()
                .contains("a product")
        );
        std::fs::write(file.path(), format!("[keys]\nk1 = \"{KEY}\"\n")).unwrap();
        assert_eq!(find(&["--master-key-file", path]), Ok(()));
    }
}
