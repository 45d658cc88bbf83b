//! The running gateway: its processes, its upgrades, and `up.json`, which says where all of it is.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::backends::{Backend, Backends};
use super::board::{Board, Published};
use super::child::{Grace, Log, Spec};
use super::control::{self, Ask};
use super::frontend::Frontend;
use super::prepare::Prepared;
use super::ready::Probe;
use super::supervise::{Context, Event, Kept, Wish};
use super::upgrade::{Adoption, Handed, Order};
use super::upgrades::{Turn, Upgrades};
use super::{FRONTEND, StopSignals};
use crate::demo;
use crate::http_client::Http;
use crate::layout::Layout;
use crate::up_json::UpJson;

pub(super) struct Supervisor {
    layout: Layout,
    frontend: Kept,
    backend: Kept,
    /// What `backend` is.
    present: Backend,
    backends: Backends,
    upgrades: Upgrades,
    context: Context,
    events: mpsc::Receiver<Event>,
    asks: mpsc::Receiver<Ask>,
    demo: JoinHandle<std::io::Result<()>>,
    control: JoinHandle<std::io::Result<()>>,
    /// What `up.json` should say.
    board: UpJson,
    file: Board,
    /// Restarts of the backends before the present one.
    earlier_restarts: u32,
    announced: bool,
    /// Held as long as this gateway runs.
    _lock: std::fs::File,
}

impl Supervisor {
    pub(super) async fn start(layout: Layout, prepared: Prepared) -> Result<Self> {
        let board = board(&layout, &prepared);
        let (sender, events) = mpsc::channel(EVENTS);
        let (ask, asks) = mpsc::channel(ASKS);
        let context = Context {
            http: Http::new()?,
            events: sender,
        };
        let frontend = Spec {
            name: FRONTEND.into(),
            binary: prepared.frontend_bin,
            arguments: vec!["--config".into(), layout.frontend_config().into()],
            log: Log::new(layout.log(FRONTEND)),
            listener: None,
            probe: Probe::Url(format!("{}/ready", board.frontend_admin)),
            grace: Grace::Fixed(FRONTEND_GRACE),
        };
        let mut backends = Backends::new(layout.clone(), prepared.api);
        let present = backends.make(&prepared.backend_bin, None).await?;
        if let Some(warning) = &present.program.warning {
            say!("holdfast: {warning}");
        }
        Ok(Self {
            frontend: Kept::start(frontend, &context),
            backend: Kept::start(present.spec.clone(), &context),
            present,
            backends,
            upgrades: Upgrades::new(
                layout.clone(),
                Frontend {
                    http: context.http.clone(),
                    admin: board.frontend_admin.clone(),
                },
            ),
            context,
            events,
            asks,
            demo: tokio::spawn(demo::serve(prepared.demo)),
            control: tokio::spawn(control::serve(prepared.control, ask)),
            board,
            file: Board::new(layout.clone()),
            earlier_restarts: 0,
            announced: false,
            layout,
            _lock: prepared.lock,
        })
    }

    pub(super) async fn run(mut self, stop: &mut StopSignals) -> Result<ExitCode> {
        let result = self.watch(stop).await;
        self.stop_backends(stop).await;
        self.frontend.stop(stop).await;
        self.demo.abort();
        self.control.abort();
        self.file.finish().await;
        for path in [self.layout.up_json(), self.layout.up_socket()] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    say!("holdfast: cannot remove {}: {error}", path.display());
                }
                _ => {}
            }
        }
        result.map(|()| ExitCode::SUCCESS)
    }

    /// Until told to stop, or something failed for good.
    async fn watch(&mut self, stop: &mut StopSignals) -> Result<()> {
        loop {
            tokio::select! {
                // Why a process failed is an event, and comes before its supervision ends.
                biased;
                () = stop.next() => {
                    say!("holdfast: stopping");
                    return Ok(());
                }
                event = self.events.recv() => self.handle_event(event.context("the supervisors are gone")?)?,
                _ = self.frontend.ended() => return Err(anyhow!("nobody looks after the {FRONTEND} any more")),
                _ = self.backend.ended() => {
                    return Err(anyhow!("nobody looks after {} any more", self.present.name()));
                }
                demo = &mut self.demo => return Err(anyhow!("the demo service ended: {demo:?}")),
                control = &mut self.control => return Err(anyhow!("the control socket ended: {control:?}")),
                ask = self.asks.recv() => self.handle_ask(ask.context("the control socket is gone")?).await,
                turn = self.upgrades.next() => self.handle_turn(turn),
                written = self.file.written() => self.handle_written(written)?,
            }
        }
    }

    fn handle_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Failed { what, log_tail } => {
                for line in log_tail {
                    say!("  {line}");
                }
                let logs = self.layout.logs();
                Err(anyhow!("{what} (its log is in {})", logs.display()))
            }
            Event::Ready { name, pid, restarts } => {
                if !self.note_ready(&name, pid, restarts) {
                    return Ok(());
                }
                if restarts > 0 {
                    say!("holdfast: the {name} is ready again (pid {pid})");
                }
                if self.all_were_ready() {
                    self.publish();
                }
                Ok(())
            }
        }
    }

    /// Gives whether it is one that `up.json` names: the old backend of an upgrade is not, once the new one took over.
    fn note_ready(&mut self, name: &str, pid: u32, restarts: u32) -> bool {
        if name == FRONTEND {
            (self.board.frontend_pid, self.board.frontend_restarts) = (pid, restarts);
        } else if name == self.present.name() {
            self.board.backend_pid = pid;
            self.board.backend_restarts = self.earlier_restarts + restarts;
        } else {
            return false;
        }
        true
    }

    fn all_were_ready(&self) -> bool {
        self.board.frontend_pid != 0 && self.board.backend_pid != 0
    }

    fn publish(&mut self) -> Published {
        self.file.write(self.board.clone())
    }

    fn handle_written(&mut self, written: Result<()>) -> Result<()> {
        if self.announced {
            // A full disk is no reason to end what devices are connected to.
            if let Err(error) = written {
                say!("holdfast: up.json is not true any more: {error:#}");
            }
            return Ok(());
        }
        written?;
        self.announced = true;
        self.announce();
        Ok(())
    }

    async fn handle_ask(&mut self, ask: Ask) {
        // Who asked may be gone, which the upgrade itself will notice.
        match ask {
            Ask::Begin { answer, .. } if !self.all_were_ready() => drop(answer),
            Ask::Begin { request, answer } => {
                let begun = self
                    .upgrades
                    .begin(&request, &self.present, &mut self.backends)
                    .await;
                let _ = answer.send(begun);
            }
            Ask::Cancel { id, answer } => {
                let _ = answer.send(self.upgrades.cancel(id));
            }
            Ask::List { answer } => {
                let _ = answer.send(self.upgrades.list());
            }
        }
    }

    fn handle_turn(&mut self, turn: Turn) {
        match turn {
            Turn::Adopt(adoption) => self.adopt(*adoption),
            Turn::Over => self.upgrades.clear(self.present.name()),
        }
    }

    /// The new backend has taken over.
    fn adopt(&mut self, adoption: Adoption) {
        let Adoption { backend, child, old } = adoption;
        self.earlier_restarts = self.board.backend_restarts;
        self.board.backend_pid = child.id().unwrap_or_default();
        self.board.backend_name = backend.name().to_owned();
        self.board.backend_bin = backend.program.named.clone();
        let kept = Kept::adopt(backend.spec.clone(), child, &self.context);
        self.present = backend;
        let handed = Handed {
            published: self.publish(),
            deaths: kept.deaths(),
            old: std::mem::replace(&mut self.backend, kept),
        };
        // Who has asked for it may be gone: the old one is stopped when it is dropped.
        drop(old.send(handed));
        say!(
            "holdfast: {} (pid {}) took over",
            self.present.name(),
            self.board.backend_pid
        );
    }

    /// All at once: there is nobody to hand over to. A running upgrade is rolled back, or ends what it has begun.
    async fn stop_backends(&mut self, stop: &mut StopSignals) {
        let mut wish = Wish::Stop;
        loop {
            self.backend.wish(wish);
            self.upgrades.order(Order::Stop(wish));
            let runs = self.upgrades.runs();
            tokio::select! {
                turn = self.upgrades.next(), if runs => self.handle_turn(turn),
                _ = self.backend.ended(), if !runs => return,
                () = stop.next(), if wish < Wish::Kill => {
                    say!("holdfast: stopping without waiting");
                    wish = Wish::Kill;
                }
            }
        }
    }

    fn announce(&self) {
        let UpJson {
            wss,
            ws,
            udp,
            api,
            frontend_pid,
            backend_pid,
            ..
        } = &self.board;
        let dir = self.layout.root().display();
        show!(
            "holdfast is up: {wss} (frontend {frontend_pid}), {api} (backend {backend_pid}), files in {dir}"
        );
        show!("Devices with keys of their own connect to {ws} or {udp}.");
        show!();
        show!("Try, in other terminals:");
        show!("  holdfast --dir {dir} device                  then type: Demo.Echo {{\"n\":1}}");
        show!("  holdfast --dir {dir} push demo-device '{{\"text\":\"hello\"}}'");
        show!("  holdfast --dir {dir} status");
        show!("  holdfast --dir {dir} upgrade backend         a new backend: the device stays connected");
        show!("  kill -9 {backend_pid}          a crash of the backend: the device stays connected");
        show!();
        show!("Ctrl-C stops everything.");
    }
}

fn board(layout: &Layout, prepared: &Prepared) -> UpJson {
    let ports = prepared.ports;
    UpJson {
        wss: format!("wss://localhost:{}", ports.wss),
        ws: format!("ws://127.0.0.1:{}", ports.ws),
        udp: format!("udp://127.0.0.1:{}", ports.udp),
        api: format!("http://127.0.0.1:{}", ports.api),
        api_key: prepared.api_key.clone(),
        ca: layout.ca(),
        frontend_admin: format!("http://127.0.0.1:{}", ports.admin),
        frontend_pid: 0,
        backend_pid: 0,
        backend_name: "backend-1".into(),
        backend_bin: prepared.backend_bin.clone(),
        control_dir: layout.control_dir(),
        routes: layout.routes(),
        token_key: layout.token_key(),
        master_key: layout.master_key(),
        up_pid: std::process::id(),
        frontend_restarts: 0,
        backend_restarts: 0,
    }
}

/// Readiness is rare; the supervisors wait when it is not read.
const EVENTS: usize = 16;
/// Callers of the control socket that wait for the loop's next turn.
const ASKS: usize = 16;
const FRONTEND_GRACE: Duration = Duration::from_secs(10);
