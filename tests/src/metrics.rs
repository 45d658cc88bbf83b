//! Prometheus text, read.

/// The sum of all series of `name` whose labels include `labels`; 0 when there is none.
pub fn sum(exposition: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let series = exposition.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (own, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None if rest.starts_with(' ') => ("", rest),
            None => return None,
        };
        let has = |(key, value): &(&str, &str)| own.split(',').any(|l| l == format!("{key}=\"{value}\""));
        if labels.iter().all(has) {
            value.split_whitespace().next()?.parse::<f64>().ok()
        } else {
            None
        }
    });
    series.sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn sums_what_matches() {
        let text = "# HELP a_total x\na_total{x=\"1\",y=\"a\"} 3\na_total{x=\"2\",y=\"a\"} 4\na_total_more 9\nb 1.5\n# EOF\n";
        assert_eq!(sum(text, "a_total", &[]), 7.0);
        assert_eq!(sum(text, "a_total", &[("x", "2"), ("y", "a")]), 4.0);
        assert_eq!(sum(text, "a_total", &[("x", "3")]), 0.0);
        assert_eq!(sum(text, "b", &[]), 1.5);
    }
}
