//! The shard against scripted channels and backends, on virtual time.
