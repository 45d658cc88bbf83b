//! `routes.toml`: text in, a checked [`RouteTable`] out.

use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::config::Interval;
use holdfast_proto::event::MAX_FIELD_BYTES;
use holdfast_proto::link::MAX_REPLY_BYTES;
use serde::Deserialize;

use crate::config::{http_address, toml_message};

use super::table::{ANY, Order, Route, RouteKey, RouteTable};

/// Most routes in a file.
pub const MAX_ROUTES: usize = 4096;
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
pub const DEFAULT_CONCURRENCY: usize = 256;
pub const DEFAULT_QUEUE: usize = 1024;
pub const DEFAULT_MAX_REPLY_BYTES: usize = 1024 * 1024;

const MAX_TIMEOUT: Interval = Interval::from_secs(600);
const MIN_TIMEOUT: Interval = Interval::from_millis(10);
const MAX_CONCURRENCY: usize = 65_536;
const MAX_QUEUE: usize = 1_000_000;

/// What is wrong with a file of routes: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("{0}")]
    Syntax(String),
    #[error("{0} routes: allowed are at most {MAX_ROUTES}")]
    TooMany(usize),
    #[error("route {number} ({key}): {what}")]
    Route {
        number: usize,
        key: String,
        what: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "route")]
    routes: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    namespace: String,
    name: String,
    url: String,
    timeout: Option<Interval>,
    #[serde(default)]
    order: Order,
    concurrency: Option<usize>,
    queue: Option<usize>,
    max_reply_bytes: Option<usize>,
    #[serde(default)]
    one_way: bool,
}

impl RouteTable {
    /// Reads the text of a file. An empty one is a table without routes.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let file: File =
            toml::from_str(text).map_err(|error| RouteError::Syntax(toml_message(text, &error)))?;
        if file.routes.len() > MAX_ROUTES {
            return Err(RouteError::TooMany(file.routes.len()));
        }
        let mut table = Self::default();
        for (i, entry) in file.routes.into_iter().enumerate() {
            let key = format!("{}/{}", entry.namespace, entry.name);
            let wrong = |what: String| RouteError::Route {
                number: i + 1,
                key: key.clone(),
                what,
            };
            let route = entry.check().map_err(&wrong)?;
            table
                .insert(route)
                .map_err(|_| wrong("is there twice".to_owned()))?;
        }
        Ok(table)
    }
}

impl Entry {
    fn check(self) -> Result<Route, String> {
        pattern("namespace", &self.namespace)?;
        pattern("name", &self.name)?;
        let (url, host) = http_address("url", &self.url)?;
        let timeout = self.timeout.unwrap_or(Interval(DEFAULT_TIMEOUT));
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&timeout) {
            return Err(format!(
                "timeout = \"{timeout}\": allowed is {MIN_TIMEOUT} to {MAX_TIMEOUT}"
            ));
        }
        Ok(Route {
            key: RouteKey {
                namespace: Arc::from(self.namespace),
                name: Arc::from(self.name),
            },
            url,
            host,
            timeout: timeout.get(),
            order: self.order,
            concurrency: number(
                "concurrency",
                self.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
                1,
                MAX_CONCURRENCY,
            )?,
            queue: number("queue", self.queue.unwrap_or(DEFAULT_QUEUE), 0, MAX_QUEUE)?,
            max_reply_bytes: number(
                "max_reply_bytes",
                self.max_reply_bytes.unwrap_or(DEFAULT_MAX_REPLY_BYTES),
                1,
                MAX_REPLY_BYTES,
            )?,
            one_way: self.one_way,
        })
    }
}

fn pattern(key: &str, value: &str) -> Result<(), String> {
    if value != ANY && value.contains(ANY) {
        return Err(format!(
            "{key} = {value:?}: allowed is an exact text, or \"*\" alone"
        ));
    }
    if value.is_empty() || value.len() > MAX_FIELD_BYTES {
        return Err(format!(
            "{key} = {value:?}: allowed is 1 to {MAX_FIELD_BYTES} bytes"
        ));
    }
    Ok(())
}

fn number(key: &str, value: usize, min: usize, max: usize) -> Result<usize, String> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{key} = {value}: allowed is {min} to {max}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(lines: &str) -> Result<RouteTable, String> {
        let text = format!("[[route]]\nnamespace = \"Demo\"\nname = \"*\"\n{lines}\n");
        RouteTable::parse(&text).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let table = parse("url = \"http://127.0.0.1:7403/demo\"").unwrap();
        let route = table.lookup("Demo", "Echo").unwrap();
        assert_eq!(
            (route.timeout, route.order),
            (Duration::from_secs(10), Order::Connection)
        );
        assert_eq!(
            (route.concurrency, route.queue, route.max_reply_bytes),
            (256, 1024, 1_048_576)
        );
        assert!(!route.one_way);
        assert_eq!(
            (route.url.path(), route.host.to_str().unwrap()),
            ("/demo", "127.0.0.1:7403")
        );
    }

    #[test]
    fn values_are_taken() {
        let table = parse("url = \"https://svc.example?x=1\"\ntimeout = \"5s\"\norder = \"none\"\nconcurrency = 64\nqueue = 0\nmax_reply_bytes = 10\none_way = true").unwrap();
        let route = table.lookup("Demo", "Echo").unwrap();
        assert_eq!(
            (route.timeout, route.order, route.one_way),
            (Duration::from_secs(5), Order::None, true)
        );
        assert_eq!(
            (route.concurrency, route.queue, route.max_reply_bytes),
            (64, 0, 10)
        );
        assert_eq!(route.url.to_string(), "https://svc.example/?x=1");
    }

    #[test]
    fn what_is_wrong_is_one_line_naming_the_route() {
        let good = "url = \"http://h/\"\n";
        for (lines, wanted) in [
            (
                "url = \"ftp://h/\"",
                "route 1 (Demo/*): url = \"ftp://h/\": allowed is http:// or https://",
            ),
            ("url = \"/demo\"", "relative URL"),
            ("url = \"http://user:secret@h/\"", "a user or password"),
            ("url = \"http://h/#f\"", "without a fragment"),
            (
                &format!("{good}timeout = \"1h\""),
                "timeout = \"1h\": allowed is 10ms to 10m",
            ),
            (
                &format!("{good}concurrency = 0"),
                "concurrency = 0: allowed is 1 to 65536",
            ),
            (&format!("{good}max_reply_bytes = 999999999"), "max_reply_bytes"),
            (
                &format!("{good}order = \"some\""),
                "line 5: unknown variant `some`",
            ),
            (&format!("{good}typo = 1"), "unknown field `typo`"),
            (
                &format!("{good}[[route]]\nnamespace=\"Demo\"\nname=\"*\"\n{good}"),
                "route 2 (Demo/*): is there twice",
            ),
            (
                &format!("{good}[[route]]\nnamespace=\"De*\"\nname=\"*\"\n{good}"),
                "or \"*\" alone",
            ),
            (
                &format!("{good}[[route]]\nnamespace=\"\"\nname=\"*\"\n{good}"),
                "1 to 128 bytes",
            ),
        ] {
            let error = parse(lines).unwrap_err();
            assert!(error.contains(wanted), "{error}");
            assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_table() {
        assert!(RouteTable::parse("").unwrap().routes().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}") {
            let _ = RouteTable::parse(&text);
            let _ = http_address("url", &text);
        }
    }
}
