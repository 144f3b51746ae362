// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Conversion of jobs to and from messages.

use std::time::SystemTime;

use resnap_unpacker::JobState;

use crate::{JobStatus, Malformed, count, size, v1};

impl From<JobState> for v1::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Running => Self::Running,
            JobState::Cancelling => Self::Cancelling,
            JobState::Done => Self::Done,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

impl TryFrom<v1::JobState> for JobState {
    type Error = Malformed;

    fn try_from(state: v1::JobState) -> Result<Self, Malformed> {
        Ok(match state {
            v1::JobState::Running => Self::Running,
            v1::JobState::Cancelling => Self::Cancelling,
            v1::JobState::Done => Self::Done,
            v1::JobState::Failed => Self::Failed,
            v1::JobState::Cancelled => Self::Cancelled,
            v1::JobState::Unspecified => return Err(Malformed("state of a job")),
        })
    }
}

impl From<JobStatus> for v1::Job {
    fn from(job: JobStatus) -> Self {
        Self {
            id: job.id,
            image: job.image,
            snapshotter: job.snapshotter,
            platform: job.platform,
            origin: job.origin,
            state: v1::JobState::from(job.state).into(),
            started: Some(job.started.into()),
            layers: count(job.layers),
            ready_layers: count(job.ready_layers),
            bytes: job.bytes,
            ready_bytes: job.ready_bytes,
            read_bytes: job.read_bytes,
            waiters: count(job.waiters),
            waits_for: job.waits_for,
            failure: job.failure.map(Into::into),
        }
    }
}

impl TryFrom<v1::Job> for JobStatus {
    type Error = Malformed;

    fn try_from(job: v1::Job) -> Result<Self, Malformed> {
        let state = job.state().try_into()?;
        let started = job.started.map(SystemTime::try_from);
        let started = started.and_then(Result::ok);
        let started = started.ok_or(Malformed("time of a job"))?;
        let mut converted = Self::new(job.id, job.image, job.snapshotter, state, started);
        converted.platform = job.platform;
        converted.origin = job.origin;
        converted.layers = size(job.layers);
        converted.ready_layers = size(job.ready_layers);
        converted.bytes = job.bytes;
        converted.ready_bytes = job.ready_bytes;
        converted.read_bytes = job.read_bytes;
        converted.waiters = size(job.waiters);
        converted.waits_for = job.waits_for;
        converted.failure = job.failure.map(Into::into);
        Ok(converted)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use resnap_core::Kind;

    use super::*;
    use crate::Failure;

    #[test]
    fn a_job_survives_its_message() {
        for number in 1..=5 {
            let state = v1::JobState::try_from(number).unwrap();
            let mut job = JobStatus::new(
                7,
                "web".to_owned(),
                "erofs".to_owned(),
                state.try_into().unwrap(),
                SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123),
            );
            job.platform = "linux/amd64".to_owned();
            job.origin = "cri".to_owned();
            job.layers = 3;
            job.ready_layers = 1;
            job.bytes = 300;
            job.ready_bytes = 100;
            job.read_bytes = 150;
            job.waiters = 2;
            job.waits_for = Some("process 7".to_owned());
            job.failure = (number == 4).then(|| Failure {
                kind: Kind::NotFound,
                reason: "MISSING_BLOB".to_owned(),
                message: "gone".to_owned(),
                next_step: None,
            });
            assert_eq!(JobStatus::try_from(v1::Job::from(job.clone())), Ok(job));
        }
        let unspecified = JobStatus::try_from(v1::Job::default());
        assert_eq!(unspecified, Err(Malformed("state of a job")));
    }
}
