//! The program as a user meets it, as far as no gateway need run.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{EncodePrivateKey, KeypairBytes};

fn holdfast(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(args)
        .env("HOLDFAST_DIR", dir)
        .env_remove("HOLDFAST_FRONTEND_BIN")
        .env_remove("HOLDFAST_BACKEND_BIN")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code 1 and exactly one line, which is given.
fn fails(dir: &Path, args: &[&str]) -> String {
    let output = holdfast(dir, args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(error.starts_with("holdfast: "), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
    error
}

#[test]
fn help_tells_what_can_be_done_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    let output = holdfast(dir.path(), &["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in [
        "up",
        "token",
        "device",
        "push",
        "status",
        "Examples",
        "HOLDFAST_DIR",
    ] {
        assert!(help.contains(word), "{word} is not in {help}");
    }
    assert!(!help.contains("supervised-exec"));
    for command in ["up", "token", "device", "push", "status"] {
        let help = text(&holdfast(dir.path(), &[command, "--help"]).stdout);
        assert!(help.contains("Example"), "{command}: {help}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["nonsense"],
        &["token"],
        &["token", "a b"],
        &["key"],
        &["key", "tv", "--key-version", "x"],
        &["token", "tv", "--ttl", "soon"],
        &["up", "--port-base", "65532"],
        &["device", "--rate", "1"],
        &["push", "tv"],
    ] {
        assert_eq!(holdfast(dir.path(), args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn without_a_gateway_commands_say_so_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for args in [&["status"][..], &["push", "tv", "{}"], &["device"]] {
        let error = fails(&missing, args);
        assert!(error.contains("holdfast up"), "{error}");
    }
    assert!(fails(&missing, &["token", "tv"]).contains("token_key.pem"));
    assert!(!missing.exists(), "asking must not make the directory");
}

#[test]
fn up_without_binaries_names_the_file_and_the_option() {
    let dir = tempfile::tempdir().unwrap();
    let error = fails(dir.path(), &["up", "--frontend-bin", "/nowhere/frontend"]);
    assert!(
        error.contains("/nowhere/frontend") && error.contains("--frontend-bin"),
        "{error}"
    );
    let error = fails(
        dir.path(),
        &[
            "up",
            "--frontend-bin",
            "/bin/true",
            "--backend-bin",
            "/nowhere/backend",
        ],
    );
    assert!(
        error.contains("/nowhere/backend") && error.contains("--backend-bin"),
        "{error}"
    );
}

#[test]
fn a_port_in_use_by_another_protocol_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let (taken, base) = std::iter::repeat_with(|| 10_000 + rand::random::<u16>() % 20_000)
        .find_map(|base| {
            let taken = std::net::UdpSocket::bind(("127.0.0.1", base + 4)).ok()?;
            (base..base + 5).all(is_free).then_some((taken, base))
        })
        .unwrap();
    let base = base.to_string();
    let args = [
        "up",
        "--port-base",
        &base,
        "--frontend-bin",
        "/bin/true",
        "--backend-bin",
        "/bin/true",
    ];
    let error = fails(dir.path(), &args);
    let port = taken.local_addr().unwrap().port();
    assert!(
        error.contains(&format!("port {port} cannot be used for udp")),
        "{error}"
    );
}

#[test]
fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let base = port.min(65531).to_string();
    let args = [
        "up",
        "--port-base",
        &base,
        "--frontend-bin",
        "/bin/true",
        "--backend-bin",
        "/bin/true",
    ];
    let error = fails(dir.path(), &args);
    assert!(
        error.contains(&port.to_string()) && error.contains("--port-base"),
        "{error}"
    );
}

#[test]
fn a_token_is_a_signed_jwt_for_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::from_bytes(&[7; 32]);
    let pem = KeypairBytes {
        secret_key: key.to_bytes(),
        public_key: None,
    }
    .to_pkcs8_pem(LineEnding::LF)
    .unwrap();
    std::fs::write(dir.path().join("token_key.pem"), pem.as_bytes()).unwrap();

    let output = holdfast(dir.path(), &["token", "tv:living-room.1", "--ttl", "90s"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let token = text(&output.stdout);
    let parts: Vec<_> = token.trim_end().split('.').collect();
    let [header, claims, signature] = parts[..] else {
        panic!("not a JWT: {token}")
    };
    let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&decode(header)).unwrap();
    let claimed: serde_json::Value = serde_json::from_slice(&decode(claims)).unwrap();
    assert_eq!(header["alg"], "EdDSA");
    assert_eq!(claimed["sub"], "tv:living-room.1");
    assert_eq!(
        claimed["exp"].as_u64().unwrap() - claimed["iat"].as_u64().unwrap(),
        90
    );

    let signed = token.trim_end().rsplit_once('.').unwrap().0;
    let signature = ed25519_dalek::Signature::from_slice(&decode(signature)).unwrap();
    key.verifying_key()
        .verify_strict(signed.as_bytes(), &signature)
        .unwrap();
}

#[test]
fn a_device_key_is_derived_from_the_master_key() {
    let dir = tempfile::tempdir().unwrap();
    let missing = fails(dir.path(), &["key", "lamp"]);
    assert!(missing.contains("keys/master.toml does not exist"), "{missing}");
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    let master = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
    let file = dir.path().join("keys/master.toml");
    std::fs::write(&file, format!("[keys]\nk1 = \"{master}\"\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();

    let key_of = |args: &[&str]| {
        let output = holdfast(dir.path(), &[&["key"], args].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim_end().to_owned()
    };
    let key = key_of(&["lamp"]);
    assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(&key).unwrap().len(), 32);
    assert_eq!(key_of(&["lamp", "--key-version", "1", "--key-id", "k1"]), key);
    for other in [
        &["lamp2"][..],
        &["lamp", "--product", "p"],
        &["lamp", "--class", "p"],
        &["lamp", "--key-version", "2"],
    ] {
        assert_ne!(key_of(other), key, "{other:?}");
    }
    let shown: serde_json::Value = serde_json::from_str(&key_of(&["lamp", "--json"])).unwrap();
    let wanted = serde_json::json!({
        "device": "lamp", "product": "", "class": "", "key_id": "k1", "key_version": 1, "key": key,
    });
    assert_eq!(shown, wanted);
    let elsewhere = tempfile::tempdir().unwrap();
    let output = holdfast(
        elsewhere.path(),
        &["key", "lamp", "--master", file.to_str().unwrap()],
    );
    assert_eq!(text(&output.stdout).trim_end(), key);
    assert!(fails(dir.path(), &["key", "lamp", "--key-id", "k2"]).contains("k1"));
}

#[test]
fn an_unusable_token_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token_key.pem"), "not a key").unwrap();
    assert!(fails(dir.path(), &["token", "tv"]).contains("token_key.pem"));
}

#[test]
fn a_damaged_up_json_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("up.json"), "{").unwrap();
    assert!(fails(dir.path(), &["status"]).contains("up.json"));
}

#[test]
fn a_process_that_fails_at_start_ends_up_and_shows_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("fails");
    std::fs::write(&script, "#!/bin/sh\necho the reason >&2\nexit 2\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap();
    // Below the ports that the system gives to outgoing connections.
    let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let base = std::iter::repeat_with(|| 10_000 + rand::random::<u16>() % 20_000)
        .find(|base| (*base..base + 5).all(is_free))
        .unwrap()
        .to_string();
    let state = dir.path().join("state");
    let output = holdfast(
        &state,
        &[
            "up",
            "--port-base",
            &base,
            "--frontend-bin",
            script,
            "--backend-bin",
            script,
        ],
    );
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("the reason") && error.contains("exit status: 2"),
        "{error}"
    );
    assert!(!state.join("up.json").exists());
}
