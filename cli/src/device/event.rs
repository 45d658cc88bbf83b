//! What a person types: `Namespace.Name JSON`, or a whole event.

use anyhow::{Context, Result, anyhow};
use holdfast_client::Request;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Reads one line. The payload is `{}` when absent.
pub(super) fn parse(line: &str) -> Result<Request> {
    let line = line.trim();
    if line.starts_with('{') {
        return parse_event(line);
    }
    let (event, json) = line.split_once(char::is_whitespace).unwrap_or((line, "{}"));
    let (namespace, name) = event
        .split_once('.')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
        .ok_or_else(|| {
            anyhow!("expected `Namespace.Name JSON` or a whole event, such as: Demo.Echo {{\"n\":1}}")
        })?;
    let payload = serde_json::from_str(json.trim()).context("the payload is not JSON")?;
    Ok(Request::json(namespace, name, payload))
}

#[derive(Deserialize)]
struct Event {
    header: Header,
    payload: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Header {
    namespace: String,
    name: String,
    id: Option<String>,
    retry_key: Option<String>,
}

fn parse_event(line: &str) -> Result<Request> {
    let event: Event = serde_json::from_str(line).context("the event is not readable")?;
    let Header {
        namespace,
        name,
        id,
        retry_key,
    } = event.header;
    let payload = event.payload.unwrap_or_else(|| RawValue::NULL.to_owned());
    Ok(Request {
        id,
        retry_key,
        ..Request::json(namespace, name, payload)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_client::Body;

    #[test]
    fn both_forms_are_read() {
        let request = parse("  Demo.Echo  { \"n\" : 1 } ").unwrap();
        assert_eq!(
            (request.namespace.as_str(), request.name.as_str(), request.id),
            ("Demo", "Echo", None)
        );
        assert!(matches!(request.body, Body::Json(json) if json.get() == "{ \"n\" : 1 }"));
        assert!(matches!(parse("Demo.Time").unwrap().body, Body::Json(json) if json.get() == "{}"));
        let request =
            parse(r#"{"header":{"namespace":"A.B","name":"C","id":"x","retry_key":"k"},"payload":7}"#)
                .unwrap();
        assert_eq!(
            (request.namespace.as_str(), request.id.as_deref()),
            ("A.B", Some("x"))
        );
        assert_eq!(request.retry_key.as_deref(), Some("k"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for bad in ["Demo", ".Echo", "Demo. {}", "Demo.Echo {", "{\"header\":{}}", ""] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
