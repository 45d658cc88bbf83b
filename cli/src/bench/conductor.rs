//! Starts everything, keeps the time, ends everything, and reports.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::channel::{Dialler, REQUEST_TIMEOUT};
use super::cpu::Cpu;
use super::events::Events;
use super::gateway::{Home, Up};
use super::generator::{Generator, Load, NAMESPACE, Shared};
use super::options::Options;
use super::payload::Payloads;
use super::phase::{Kind, Now, Phase};
use super::progress::{Progress, Status};
use super::report::{self, Connections, CpuPoint, EventReport, Rate, Report, Settings, Strain};
use super::service::{self, Service};
use super::verdict::{Evidence, Verdict};
use super::{html, machine, plan, script, table};
use crate::up::StopSignals;

pub(crate) async fn conduct(options: &Options) -> Result<ExitCode> {
    // Each sees all signals.
    let (interrupt, insistence) = (StopSignals::new()?, StopSignals::new()?);
    for path in [&options.json, &options.html].into_iter().flatten() {
        check_writable(path)?;
    }
    let mut home = Home::make(options.keep.as_deref())?;
    let done = tokio::select! {
        done = start_and_run(options, &home, interrupt) => done,
        // The first one ends the run; who asks twice does not want to wait.
        () = twice(insistence) => Err(anyhow!("interrupted twice: stopped without a report")),
    };
    let report = match done {
        Ok(report) => report,
        Err(error) => {
            let dir = home.keep();
            return Err(error.context(format!("no report (logs are in {})", dir.join("logs").display())));
        }
    };
    // Who does not read it may still want the files.
    let _ = std::io::stdout().write_all(table::table(&report).as_bytes());
    if let Some(path) = &options.json {
        let text = serde_json::to_string(&report).context("the report")?;
        write(path, &text)?;
    }
    if let Some(path) = &options.html {
        write(path, &html::page(&report)?)?;
    }
    if !home.is_temporary() || !report.verdict.clean {
        show!("The gateway's files and logs are in {}.", home.keep().display());
    }
    Ok(match (report.verdict.clean, report.interrupted) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(INTERRUPTED),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Ten minutes later would be too late to learn of it. Nothing is left behind.
fn check_writable(path: &Path) -> Result<()> {
    let is_new = !path.exists();
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot write {}", path.display()))?;
    if is_new {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

async fn start_and_run(options: &Options, home: &Home, mut interrupt: StopSignals) -> Result<Report> {
    // Short enough to be typed again.
    let seed = options.seed.unwrap_or_else(|| rand::random::<u32>().into());
    let threads = options
        .threads
        .unwrap_or_else(default_threads)
        .min(options.devices);
    let phase = Arc::new(Now::new(Phase::FIRST));
    let service = Service::start(service::Settings {
        delay: options.service_delay,
        seed,
        fault: options.service_fault,
        now: phase.clone(),
        max_wait: options.max_wait,
    })?;
    home.write_routes(NAMESPACE, service.address)?;
    let plan = plan::shuffled(&options.counts(), seed);
    let mut progress = Progress::new(plan.len());
    progress.say(&format!("starting a gateway in {}", home.dir().display()));
    let (mut up, json) = tokio::select! {
        started = Up::start(home) => started?,
        () = interrupt.next() => bail!("interrupted"),
    };
    let mut run = Run {
        options,
        home,
        seed,
        threads,
        service,
        shared: Arc::new(Shared::new(
            phase,
            Payloads::new(seed, options.payload as usize),
            threads,
            options.max_wait,
        )),
        up_pid: json.up_pid,
        progress,
        events: Vec::new(),
        cpu: Vec::new(),
    };
    let dialler = Dialler::new(&json, options.channel)?;
    let done = run.run(&plan, &dialler, (&mut up, &mut interrupt)).await;
    run.progress.end_line();
    up.stop().await;
    done
}

fn default_threads() -> u32 {
    (machine::cores() as u32 / 2).clamp(1, MAX_DEFAULT_THREADS)
}

struct Run<'a> {
    options: &'a Options,
    home: &'a Home,
    seed: u64,
    threads: u32,
    service: Service,
    shared: Arc<Shared>,
    up_pid: u32,
    progress: Progress,
    events: Vec<EventReport>,
    /// CPU time at each second of the run, since its processes' starts: 48 bytes each.
    cpu: Vec<(Duration, Cpu)>,
}

impl Run<'_> {
    async fn run(
        &mut self,
        plan: &[Kind],
        dialler: &Dialler,
        (up, interrupt): (&mut Up, &mut StopSignals),
    ) -> Result<Report> {
        let load = Load {
            devices: self.options.devices,
            rate: self.options.rate,
            threads: self.threads,
        };
        let mut generator = Generator::start(load, dialler, self.shared.clone())?;
        self.progress.say(&format!("connecting {} devices", load.devices));
        tokio::select! {
            connected = generator.connected() => connected?,
            status = up.exited() => bail!("the gateway ended: {}", status?),
            () = interrupt.next() => bail!("interrupted"),
        }
        let seconds: f64 = self.options.quiet.as_secs_f64();
        self.progress.say(&format!(
            "{} requests/s; {seconds} s of quiet, then {} events, {} s apart (seed {})",
            load.rate,
            plan.len(),
            self.options.spacing.as_secs_f64(),
            self.seed
        ));
        self.sample();
        generator.send();
        let was_interrupted = self.watch(plan, up, interrupt).await?;
        let took = self.shared.clock.now();
        let sent = self.shared.tally().requests.sent;
        self.sample();
        let patience = if was_interrupted { HURRIED } else { PATIENCE };
        self.progress.say("waiting for the last replies");
        generator.stop(patience).await?;
        let rate = self.rate(sent, took);
        Ok(self.report(rate, plan.len(), was_interrupted))
    }

    /// Until all events were; true if it was interrupted.
    async fn watch(&mut self, plan: &[Kind], up: &mut Up, interrupt: &mut StopSignals) -> Result<bool> {
        let events = Events::new(self.home, self.options, self.service.clone())?;
        let (sender, mut reports) = mpsc::channel(1);
        let shared = self.shared.clone();
        let course = script::run(plan, &events, self.options, &shared, &sender);
        tokio::pin!(course);
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = &mut course => break,
                Some(event) = reports.recv() => self.note(event),
                _ = seconds.tick() => self.tick(),
                status = up.exited() => bail!("the gateway ended: {}", status?),
                () = interrupt.next() => {
                    self.progress.say("interrupted: a moment for what is in flight");
                    return Ok(true);
                }
            }
        }
        while let Ok(event) = reports.try_recv() {
            self.note(event);
        }
        Ok(false)
    }

    fn note(&mut self, event: EventReport) {
        self.progress.event(&event);
        self.events.push(event);
    }

    fn tick(&mut self) {
        self.sample();
        let at = self.shared.clock.now();
        let status = {
            let mut tally = self.shared.tally();
            tally.timeline.close_before(at);
            Status {
                at,
                sent: tally.requests.sent,
                unanswered: tally.unanswered(),
                noticed: tally.noticed(),
                events_done: self.events.len(),
                stage: self.shared.phase.get().stage,
            }
        };
        self.progress.tick(&status);
    }

    fn sample(&mut self) {
        self.cpu.push((self.shared.clock.now(), Cpu::read(self.up_pid)));
    }

    fn rate(&self, sent: u64, took: Duration) -> Rate {
        let tally = self.shared.tally();
        Rate {
            asked: self.options.rate,
            reached: sent as f64 / took.as_secs_f64().max(f64::EPSILON),
            seconds: took.as_secs_f64(),
            late_p99_ms: tally.late.ms_at(0.99),
            held_back: tally.held_back,
        }
    }

    fn report(&mut self, rate: Rate, planned: usize, interrupted: bool) -> Report {
        let tally = self.shared.tally();
        let connections = Connections {
            opened: self.shared.connected(),
            dropped: tally.dropped.clone(),
        };
        let requests = tally.requests.clone();
        let service = self.service.calls();
        let verdict = Verdict::on(&Evidence {
            connections: &connections,
            requests: &requests,
            service: &service,
            events: &self.events,
            max_wait: self.options.max_wait,
        });
        let machine = machine::read();
        let cpu_seconds = match (self.cpu.first(), self.cpu.last()) {
            (Some((_, first)), Some((_, last))) => last.since(first),
            _ => Cpu::default(),
        };
        let strain = Strain {
            rate,
            cpu: cpu_seconds,
            cores: machine.cores,
            threads: self.threads,
        };
        Report {
            settings: settings(self.options, self.seed, self.threads, planned),
            machine,
            interrupted,
            verdict,
            connections,
            requests,
            service,
            rate,
            latency: report::stages(&tally),
            kinds: report::kinds(&self.events),
            events: std::mem::take(&mut self.events),
            cpu_seconds,
            limits: report::limits(&strain),
            timeline: tally.timeline.points(),
            cpu_timeline: self.cpu.windows(2).filter_map(cores_in_use).collect(),
        }
    }
}

fn cores_in_use(pair: &[(Duration, Cpu)]) -> Option<CpuPoint> {
    let [(from, before), (to, after)] = pair else {
        return None;
    };
    let seconds = to.saturating_sub(*from).as_secs_f64();
    (seconds > 0.1).then(|| CpuPoint {
        at_ms: to.as_millis() as u64,
        cores: after.since(before).per(seconds),
    })
}

fn settings(options: &Options, seed: u64, threads: u32, planned: usize) -> Settings {
    let delay = options.service_delay;
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    Settings {
        version: env!("CARGO_PKG_VERSION"),
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        seed,
        devices: options.devices,
        channels: options.channel.all().to_vec(),
        rate: options.rate,
        threads,
        payload_bytes: options.payload,
        service_delay_ms: [ms(delay.least), ms(delay.most)],
        spacing_s: options.spacing.as_secs_f64(),
        quiet_s: options.quiet.as_secs_f64(),
        hang_for_s: options.hang_for.as_secs_f64(),
        max_wait_s: options.max_wait.as_secs_f64(),
        watch_s: options.watch.as_secs_f64(),
        canary_share: options.canary_share.to_string(),
        events: planned as u32,
    }
}

/// Done at the second signal.
async fn twice(mut interrupt: StopSignals) {
    interrupt.next().await;
    interrupt.next().await;
}

/// As a shell says it of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;
const MAX_DEFAULT_THREADS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() + 5);
/// Enough for a backend that was just killed to come back.
const HURRIED: Duration = Duration::from_secs(5);
