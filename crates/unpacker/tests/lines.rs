// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The log lines of jobs at `info`, and the names of jobs.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use resnap_core::testing::{
    Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
};
use resnap_core::{Kind, PodId};
use resnap_unpacker::{Engine, EngineSettings, Request};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_when_it_begins_and_one_when_it_ends() {
    let simulated = Simulated::new();
    simulated.add_snapshotter("erofs", Behaviour::Ordinary);
    let image = SimulatedImage::new(["a", "b", "c"].map(SimulatedLayer::new));
    let id = image.config.digest.to_string();
    simulated.add_image("k8s.io", &id, &image);
    simulated.set_faults([Fault {
        operation: Operation::Apply,
        call: 2,
        effect: Effect::Fail(Kind::Unavailable),
    }]);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let engine = Engine::new(simulated.ports(), "k8s.io", EngineSettings::default()).unwrap();
    let ask = || {
        let mut request = Request::new(&id).on("erofs");
        request.user_reference = Some("docker.io/library/web:1".to_owned());
        request.pod = Some(PodId::new("shop/front", "1"));
        engine.unpack(request)
    };
    let title = format!("docker.io/library/web:1 ({id})");
    let job = ["erofs", "shop/front", &title, "layers=3", "bytes="];

    let error = ask().report().await.unwrap_err().to_string();
    assert!(error.contains(&title), "{error}");
    let told = lines.take();
    assert_eq!(told.len(), 2, "{told:#?}");
    told.iter().for_each(|line| says(line, &job));
    says(&told[0], &["INFO", "unpack begun"]);
    says(
        &told[1],
        &["INFO", "unpack ended", "failed", "seconds=", "injected"],
    );
    assert_eq!(
        simulated.leases("k8s.io")[0].labels["resnap.io/image"],
        title
    );

    let running = ask();
    running.started().await.unwrap();
    assert_eq!(engine.jobs()[0].image, title);
    // The report has the ID, as the request was by ID.
    assert_eq!(running.report().await.unwrap().image, id);
    let told = lines.take();
    assert_eq!(told.len(), 2, "{told:#?}");
    told.iter().for_each(|line| says(line, &job));
    says(&told[1], &["INFO", "unpack ended", "ready", "seconds="]);
}
