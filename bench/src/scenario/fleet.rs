//! Devices, or sinks, in several processes as one.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use tokio::time::{Instant, sleep};

use crate::conductor::Worker;
use crate::process::Cpu;
use crate::protocol::{Devices, Endpoint, Role, Traffic};

pub(super) struct Fleet {
    pub(super) workers: Vec<Worker>,
}

impl Fleet {
    /// Devices of one endpoint. The first numbers of two processes are `apart`.
    pub(super) async fn start(endpoint: &Endpoint, processes: u32, apart: u32) -> Result<Self> {
        let role = |process| {
            Role::Devices(Devices {
                endpoint: endpoint.clone(),
                first: process * apart,
            })
        };
        Self::of("load generator", (0..processes).map(role)).await
    }

    pub(super) async fn of(name: &'static str, roles: impl Iterator<Item = Role>) -> Result<Self> {
        let mut workers = Vec::new();
        for role in roles {
            workers.push(Worker::start(name, &role).await?);
        }
        Ok(Self { workers })
    }

    /// So many more, in equal parts and all processes at a time.
    pub(super) async fn connect(&mut self, count: u32) -> Result<()> {
        let (all, mut left) = (self.workers.len() as u32, count);
        let mut shares = Vec::new();
        for position in 0..all {
            let share = left / (all - position);
            left -= share;
            shares.push(share);
        }
        let workers = self.workers.iter_mut().zip(shares);
        try_join_all(workers.map(|(worker, share)| worker.connect(share))).await?;
        Ok(())
    }

    pub(super) async fn pushes(&mut self) -> Result<u64> {
        let counts = try_join_all(self.workers.iter_mut().map(Worker::pushes)).await?;
        Ok(counts.into_iter().sum())
    }

    /// Waits until so many pushes (sinks: bytes) have come in all.
    ///
    /// # Errors
    /// When they do not come, or more do.
    pub(super) async fn expect(&mut self, count: u64) -> Result<()> {
        let (mut arrived, mut since) = (self.pushes().await?, Instant::now());
        while arrived < count {
            if since.elapsed() > PATIENCE {
                bail!("{} of {count} deliveries were lost", count - arrived);
            }
            sleep(POLL).await;
            let now = self.pushes().await?;
            if now > arrived {
                (arrived, since) = (now, Instant::now());
            }
        }
        if arrived > count {
            bail!("{} deliveries too many", arrived - count);
        }
        Ok(())
    }

    pub(super) async fn traffic(&mut self) -> Result<Traffic> {
        let mut all = Traffic::default();
        for traffic in try_join_all(self.workers.iter_mut().map(Worker::traffic)).await? {
            all.add(&traffic);
        }
        Ok(all)
    }

    pub(super) fn cpu(&self) -> Result<Cpu> {
        let mut all = Cpu::default();
        for worker in &self.workers {
            all = all.plus(&worker.cpu()?);
        }
        Ok(all)
    }
}

/// What has not come after so long without any has been lost.
const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
