//! The table of routes: immutable, shared, looked up without allocation.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};
use rustc_hash::FxHashMap;

/// What a route is known by: its patterns. Stays the same when the file is read again, so limits and breakers keyed by it
/// survive a reload. Cloning shares the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// Exact, or `*`.
    pub namespace: Arc<str>,
    /// Exact, or `*`.
    pub name: Arc<str>,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which replies wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// All of one connection.
    #[default]
    Connection,
    /// Those of one connection and namespace.
    Namespace,
    /// None.
    None,
}

/// One service's address and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub key: RouteKey,
    /// Absolute, `http` or `https`, without user, password or fragment.
    pub url: Uri,
    /// The `Host` header that goes with `url`.
    pub host: HeaderValue,
    /// From taking up the call to the last byte of the reply.
    pub timeout: Duration,
    pub order: Order,
    /// Calls at once, in this process.
    pub concurrency: usize,
    /// Calls that wait for one of those places, in this process.
    pub queue: usize,
    /// Largest reply, in bytes.
    pub max_reply_bytes: usize,
    /// Whether replies are silent.
    pub one_way: bool,
}

/// All routes. The default table has none.
#[derive(Debug, Clone, Default)]
pub struct RouteTable {
    namespaces: FxHashMap<Arc<str>, Names>,
    any_namespace: Names,
    routes: Vec<Arc<Route>>,
}

/// The routes of one namespace pattern.
#[derive(Debug, Clone, Default)]
struct Names {
    exact: FxHashMap<Arc<str>, Arc<Route>>,
    any: Option<Arc<Route>>,
}

impl Names {
    fn insert(&mut self, route: Arc<Route>) -> Option<Arc<Route>> {
        if &*route.key.name == ANY {
            self.any.replace(route)
        } else {
            self.exact.insert(route.key.name.clone(), route)
        }
    }
}

pub(super) const ANY: &str = "*";

impl RouteTable {
    /// The most specific route: exact namespace and name, then exact namespace, then exact name, then any.
    pub fn lookup(&self, namespace: &str, name: &str) -> Option<&Arc<Route>> {
        let here = self.namespaces.get(namespace);
        here.and_then(|names| names.exact.get(name))
            .or_else(|| here.and_then(|names| names.any.as_ref()))
            .or_else(|| self.any_namespace.exact.get(name))
            .or(self.any_namespace.any.as_ref())
    }

    /// All routes, in the file's order.
    pub fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }

    /// Hands the route back when its patterns are taken.
    pub(super) fn insert(&mut self, route: Route) -> Result<(), Box<Route>> {
        if self.routes.iter().any(|r| r.key == route.key) {
            return Err(Box::new(route));
        }
        let route = Arc::new(route);
        self.routes.push(route.clone());
        let names = match &*route.key.namespace {
            ANY => &mut self.any_namespace,
            _ => self.namespaces.entry(route.key.namespace.clone()).or_default(),
        };
        names.insert(route);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(patterns: &[(&str, &str)]) -> RouteTable {
        let text: String = patterns
            .iter()
            .map(|(ns, n)| format!("[[route]]\nnamespace = \"{ns}\"\nname = \"{n}\"\nurl = \"http://h/\"\n"))
            .collect();
        RouteTable::parse(&text).unwrap()
    }

    #[test]
    fn the_most_specific_route_wins() {
        let table = table(&[("*", "*"), ("*", "n"), ("N", "*"), ("N", "n")]);
        let found = |ns, n| table.lookup(ns, n).unwrap().key.to_string();
        assert_eq!(found("N", "n"), "N/n");
        assert_eq!(found("N", "other"), "N/*");
        assert_eq!(found("Other", "n"), "*/n");
        assert_eq!(found("Other", "other"), "*/*");
        assert_eq!(table.routes().len(), 4);
    }

    #[test]
    fn what_matches_nothing_has_no_route() {
        let table = table(&[("N", "n")]);
        assert!(table.lookup("N", "m").is_none() && table.lookup("M", "n").is_none());
        assert!(RouteTable::default().lookup("N", "n").is_none());
    }

    #[test]
    fn a_star_sent_by_a_device_is_no_pattern() {
        assert!(table(&[("N", "n")]).lookup("*", "*").is_none());
    }
}
