//! A line is an event; replies, pushes and changes of state are printed as they come.

use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use holdfast_client::{Builder, Device, Error, Push, Reply, State};
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::event;

pub(super) async fn run(builder: Builder, name: &str) -> Result<ExitCode> {
    let at_terminal = std::io::stdin().is_terminal();
    let (mut lines, printer) = if at_terminal { terminal()? } else { plain() };
    let (on_push, on_state) = (printer.clone(), printer.clone());
    let device = builder
        .on_push(move |push| on_push.print(&push_line(&push)))
        .on_state(move |state| on_state.print(&state_line(state)))
        .start()?;
    printer.note(&format!(
        "{name}: type `Namespace.Name JSON`, such as Demo.Echo {{\"n\":1}}; Ctrl-D leaves"
    ));
    let mut waiting = JoinSet::new();
    let mut all_answered = true;
    let mut state = device.watch_state();
    let mut told = false;
    loop {
        tokio::select! {
            _ = state.wait_for(|state| matches!(state, State::Closed(_))), if !told => {
                if !at_terminal {
                    break;
                }
                // The reader has the terminal in raw mode, and gives it back when its line is done.
                printer.print("press Enter to leave");
                told = true;
            }
            // What is piped in waits for its turn; who types is told that there are too many.
            line = lines.recv(), if at_terminal || waiting.len() < MAX_WAITING => match line {
                Some(_) if told => break,
                Some(line) => all_answered &= send(&device, &line, &printer, &mut waiting),
                None => break,
            },
            Some(answered) = waiting.join_next() => all_answered &= answered?,
        }
    }
    while let Some(answered) = waiting.join_next().await {
        all_answered &= answered?;
    }
    let ended = device.state();
    device.close().await;
    if let State::Closed(error) = ended {
        return Err(error.into());
    }
    // A slip of the fingers at a terminal is no failure.
    Ok(if all_answered || at_terminal {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Sends what was typed, and gives whether it could be; the task prints the reply and gives whether there was one.
fn send(device: &Device, line: &str, printer: &Printer, waiting: &mut JoinSet<bool>) -> bool {
    if line.trim().is_empty() {
        return true;
    }
    let started = Instant::now();
    match event::parse(line).and_then(|request| Ok(device.send(request)?)) {
        Ok(reply) => {
            let printer = printer.clone();
            waiting.spawn(async move {
                let result = reply.await;
                let answered = result.as_ref().map_or_else(Error::is_answer, |_| true);
                printer.print(&reply_line(&result, started));
                answered
            });
            true
        }
        Err(error) => {
            printer.note(&format!("{error:#}"));
            false
        }
    }
}

fn reply_line(result: &Result<Reply, Error>, started: Instant) -> String {
    let ms = started.elapsed().as_secs_f64() * 1000.0;
    match result {
        Ok(reply) => {
            let payload = payload(&reply.payload, reply.binary);
            format!(
                "reply {}.{} #{} {ms:.1} ms {payload}",
                reply.namespace, reply.name, reply.seq
            )
        }
        Err(error) => format!("error {error}{} {ms:.1} ms", retryable(error)),
    }
}

fn retryable(error: &Error) -> &'static str {
    if matches!(error, Error::Service { retryable: true, .. }) {
        " (retryable)"
    } else {
        ""
    }
}

fn push_line(push: &Push) -> String {
    let id = push.id.as_deref().unwrap_or("-");
    format!(
        "push {}.{} {id} {}",
        push.namespace,
        push.name,
        payload(&push.payload, push.binary)
    )
}

fn state_line(state: &State) -> String {
    match state {
        State::Connecting => "connecting".into(),
        State::Online(welcome) => format!("online, session {}", welcome.session),
        State::Waiting { error, delay } => {
            format!("offline: {error}; trying again in {:.1} s", delay.as_secs_f64())
        }
        State::Closed(error) => format!("closed: {error}"),
    }
}

fn payload(bytes: &Bytes, binary: bool) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !binary => text.to_owned(),
        _ => format!("{} bytes", bytes.len()),
    }
}

/// Prints without disturbing the line that is being typed.
#[derive(Clone)]
struct Printer(Arc<Mutex<Option<Box<dyn ExternalPrinter + Send>>>>);

impl Printer {
    /// Results go to stdout.
    fn print(&self, line: &str) {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            // A terminal that is gone is noticed by the reader.
            Some(printer) => drop(printer.print(format!("{line}\n"))),
            None => show!("{line}"),
        }
    }

    /// Hints and complaints go to stderr when nobody sits at a terminal.
    fn note(&self, line: &str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            say!("{line}");
        } else {
            self.print(line);
        }
    }
}

/// Piped requests under way: as many as a device has in flight by default.
const MAX_WAITING: usize = 256;

type Lines = mpsc::Receiver<String>;

/// Reads with line editing, on a thread of its own: reading a terminal cannot be cancelled.
fn terminal() -> Result<(Lines, Printer)> {
    let mut editor = DefaultEditor::new().context("terminal")?;
    let printer = editor.create_external_printer().context("terminal")?;
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    // History is a convenience.
                    let _ = editor.add_history_entry(&line);
                    if sender.blocking_send(line).is_err() {
                        return;
                    }
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => return,
                Err(error) => {
                    eprintln!("holdfast: {error}");
                    return;
                }
            }
        }
    });
    Ok((lines, Printer(Arc::new(Mutex::new(Some(Box::new(printer)))))))
}

/// Reads lines as they are.
fn plain() -> (Lines, Printer) {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            let Ok(line) = line.inspect_err(|error| say!("holdfast: the input cannot be read: {error}"))
            else {
                return;
            };
            // What is not UTF-8 is no event, and refused as such.
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    (lines, Printer(Arc::new(Mutex::new(None))))
}

const LINES: usize = 64;
