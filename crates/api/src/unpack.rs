// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Conversion of events and reports to and from messages.

use resnap_core::{ChainId, DiffId, Stage};
use resnap_unpacker::{Event, JobRef, LayerOutcome, LayerReport, Phase, Report, StageTime};

use crate::{Malformed, count, digest, size, v1};

impl From<JobRef> for v1::JobStarted {
    fn from(job: JobRef) -> Self {
        Self {
            id: job.id,
            joined: job.joined,
        }
    }
}

impl From<v1::JobStarted> for JobRef {
    fn from(job: v1::JobStarted) -> Self {
        Self {
            id: job.id,
            joined: job.joined,
        }
    }
}

impl From<Phase> for v1::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Planned => Self::Planned,
            Phase::Existed => Self::Existed,
            Phase::Waiting => Self::Waiting,
            Phase::Prepared => Self::Prepared,
            Phase::Applying => Self::Applying,
            Phase::Committed => Self::Committed,
            Phase::Staged => Self::Staged,
            Phase::Remote => Self::Remote,
            Phase::Joined => Self::Joined,
            Phase::Failed => Self::Failed,
            Phase::Progress => Self::Progress,
            Phase::Fetching => Self::Fetching,
            Phase::Copied => Self::Copied,
            // A phase that this version of the protocol does not have.
            _ => Self::Unspecified,
        }
    }
}

impl TryFrom<v1::Phase> for Phase {
    type Error = Malformed;

    fn try_from(phase: v1::Phase) -> Result<Self, Malformed> {
        Ok(match phase {
            v1::Phase::Planned => Self::Planned,
            v1::Phase::Existed => Self::Existed,
            v1::Phase::Waiting => Self::Waiting,
            v1::Phase::Prepared => Self::Prepared,
            v1::Phase::Applying => Self::Applying,
            v1::Phase::Committed => Self::Committed,
            v1::Phase::Staged => Self::Staged,
            v1::Phase::Remote => Self::Remote,
            v1::Phase::Joined => Self::Joined,
            v1::Phase::Failed => Self::Failed,
            v1::Phase::Progress => Self::Progress,
            v1::Phase::Fetching => Self::Fetching,
            v1::Phase::Copied => Self::Copied,
            v1::Phase::Unspecified => return Err(Malformed("phase")),
        })
    }
}

impl From<Event> for v1::Event {
    fn from(event: Event) -> Self {
        Self {
            image: event.image,
            snapshotter: event.snapshotter,
            phase: v1::Phase::from(event.phase).into(),
            layer: count(event.layer),
            layers: count(event.layers),
            digest: event.digest.into(),
            chain_id: event.chain_id.to_string(),
            bytes: event.bytes,
            seconds: event.seconds,
            waits_for: event.waits_for,
            read: event.read,
        }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = Malformed;

    fn try_from(event: v1::Event) -> Result<Self, Malformed> {
        let phase = event.phase().try_into()?;
        let mut converted = Self::new(
            event.image,
            event.snapshotter,
            (size(event.layer), size(event.layers)),
            digest(event.digest)?,
            ChainId::from_trusted(digest(event.chain_id)?),
            phase,
        );
        converted.bytes = event.bytes;
        converted.seconds = event.seconds;
        converted.waits_for = event.waits_for;
        converted.read = event.read;
        Ok(converted)
    }
}

impl From<LayerOutcome> for v1::LayerOutcome {
    fn from(outcome: LayerOutcome) -> Self {
        match outcome {
            LayerOutcome::Applied => Self::Applied,
            LayerOutcome::Existed => Self::Existed,
            LayerOutcome::Joined => Self::Joined,
            LayerOutcome::Staged => Self::Staged,
            LayerOutcome::Remote => Self::Remote,
            LayerOutcome::Copied => Self::Copied,
        }
    }
}

impl TryFrom<v1::LayerOutcome> for LayerOutcome {
    type Error = Malformed;

    fn try_from(outcome: v1::LayerOutcome) -> Result<Self, Malformed> {
        Ok(match outcome {
            v1::LayerOutcome::Applied => Self::Applied,
            v1::LayerOutcome::Existed => Self::Existed,
            v1::LayerOutcome::Joined => Self::Joined,
            v1::LayerOutcome::Staged => Self::Staged,
            v1::LayerOutcome::Remote => Self::Remote,
            v1::LayerOutcome::Copied => Self::Copied,
            v1::LayerOutcome::Unspecified => return Err(Malformed("outcome")),
        })
    }
}

impl From<StageTime> for v1::StageTime {
    fn from(time: StageTime) -> Self {
        let stage = match time.stage {
            Stage::Wait => v1::Stage::Wait,
            Stage::Read => v1::Stage::Read,
            Stage::Inflate => v1::Stage::Inflate,
            Stage::Hash => v1::Stage::Hash,
            Stage::Write => v1::Stage::Write,
            Stage::Place => v1::Stage::Place,
            Stage::Commit => v1::Stage::Commit,
            Stage::Fetch => v1::Stage::Fetch,
        };
        Self {
            stage: stage.into(),
            start: time.start,
            end: time.end,
            busy: time.busy,
        }
    }
}

impl TryFrom<v1::StageTime> for StageTime {
    type Error = Malformed;

    fn try_from(time: v1::StageTime) -> Result<Self, Malformed> {
        let stage = match time.stage() {
            v1::Stage::Wait => Stage::Wait,
            v1::Stage::Read => Stage::Read,
            v1::Stage::Inflate => Stage::Inflate,
            v1::Stage::Hash => Stage::Hash,
            v1::Stage::Write => Stage::Write,
            v1::Stage::Place => Stage::Place,
            v1::Stage::Commit => Stage::Commit,
            v1::Stage::Fetch => Stage::Fetch,
            v1::Stage::Unspecified => return Err(Malformed("stage")),
        };
        Ok(Self::new(stage, time.start, time.end, time.busy))
    }
}

impl From<LayerReport> for v1::LayerReport {
    fn from(layer: LayerReport) -> Self {
        Self {
            digest: layer.digest.into(),
            diff_id: layer.diff_id.0.into(),
            chain_id: layer.chain_id.to_string(),
            bytes: layer.bytes,
            outcome: v1::LayerOutcome::from(layer.outcome).into(),
            seconds: layer.seconds,
            stages: layer.stages.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::LayerReport> for LayerReport {
    type Error = Malformed;

    fn try_from(layer: v1::LayerReport) -> Result<Self, Malformed> {
        let stages = layer.stages.iter().map(|time| StageTime::try_from(*time));
        let stages = stages.collect::<Result<_, _>>()?;
        let outcome = layer.outcome().try_into()?;
        let diff_id = DiffId(digest(layer.diff_id)?);
        let chain_id = ChainId::from_trusted(digest(layer.chain_id)?);
        let mut converted = Self::new(digest(layer.digest)?, diff_id, chain_id, outcome);
        converted.bytes = layer.bytes;
        converted.seconds = layer.seconds;
        converted.stages = stages;
        Ok(converted)
    }
}

impl From<Report> for v1::Report {
    fn from(report: Report) -> Self {
        Self {
            image: report.image,
            reference: report.reference,
            snapshotter: report.snapshotter,
            platform: report.platform,
            manifest: report.manifest.into(),
            config: report.config.into(),
            chain_id: report.chain_id.map(|chain_id| chain_id.to_string()),
            layers: report.layers.into_iter().map(Into::into).collect(),
            seconds: report.seconds,
        }
    }
}

impl TryFrom<v1::Report> for Report {
    type Error = Malformed;

    fn try_from(report: v1::Report) -> Result<Self, Malformed> {
        let layers = report.layers.into_iter().map(LayerReport::try_from);
        let chain_id = report.chain_id.map(digest).transpose()?;
        let mut converted = Self::new(
            report.image,
            report.snapshotter,
            report.platform,
            digest(report.manifest)?,
            digest(report.config)?,
        );
        converted.reference = report.reference;
        converted.chain_id = chain_id.map(ChainId::from_trusted);
        converted.layers = layers.collect::<Result<_, _>>()?;
        converted.seconds = report.seconds;
        Ok(converted)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use resnap_core::Digest;

    use super::*;

    #[test]
    fn events_and_reports_survive_their_messages() {
        let digest = Digest::sha256(b"layer");
        let chain_id = ChainId::from_trusted(digest.clone());
        for number in 1..=13 {
            let phase = v1::Phase::try_from(number).unwrap();
            let mut event = Event::new(
                "web".to_owned(),
                "erofs".to_owned(),
                (1, 2),
                digest.clone(),
                chain_id.clone(),
                phase.try_into().unwrap(),
            );
            event.bytes = u64::MAX;
            event.seconds = 0.1;
            event.waits_for = (number == 3).then(|| "process 7".to_owned());
            event.read = (number == 11).then_some(7);
            assert_eq!(v1::Phase::from(event.phase), phase);
            let bytes = v1::Event::from(event.clone()).encode_to_vec();
            let back = v1::Event::decode(&*bytes).unwrap();
            assert_eq!(Event::try_from(back), Ok(event));
        }
        let layers = (1..=6).map(|number| {
            let outcome = v1::LayerOutcome::try_from(number).unwrap();
            let mut layer = LayerReport::new(
                digest.clone(),
                DiffId(digest.clone()),
                chain_id.clone(),
                outcome.try_into().unwrap(),
            );
            layer.bytes = 7;
            layer.seconds = 0.1;
            let stages = (1..=8).map(|stage| {
                let time = v1::StageTime {
                    stage,
                    start: 0.1,
                    end: 0.5,
                    busy: 0.3,
                };
                StageTime::try_from(time).unwrap()
            });
            layer.stages = stages.collect();
            layer
        });
        let mut report = Report::new(
            "web".to_owned(),
            "erofs".to_owned(),
            "linux/amd64".to_owned(),
            digest.clone(),
            digest.clone(),
        );
        report.chain_id = Some(chain_id.clone());
        report.layers = layers.collect();
        report.seconds = 1.5;
        let message = v1::Report::from(report.clone());
        assert_eq!(Report::try_from(message), Ok(report));
    }

    #[test]
    fn unknown_values_are_refused() {
        let event = v1::Event::default();
        assert_eq!(Event::try_from(event.clone()), Err(Malformed("phase")));
        let event = v1::Event { phase: 1, ..event };
        assert_eq!(Event::try_from(event), Err(Malformed("digest")));
    }
}
