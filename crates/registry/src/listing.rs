// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The index of referrers that clients keep under a tag (distribution specification, "Referrers Tag Schema").

use resnap_core::{Digest, IndexDocument, Kind, Referrer, ReferrerList, media_type};

use crate::address::shown;
use crate::asked::Asked;
use crate::document::document;
use crate::failure::{Failure, causes};
use crate::referrers::{found, is_index};
use crate::session::{Session, Shared};

/// Changes the index of the referrers of `subject`. `change` returns whether it changed something.
pub(crate) async fn edit(
    shared: &Shared,
    session: &mut Session,
    subject: &Digest,
    change: impl FnOnce(&mut IndexDocument) -> bool,
) -> Result<(), Failure> {
    let asked = Asked::ReferrersTag(subject);
    let mut index = match found(session.ask_again(shared, asked).await)? {
        None => IndexDocument::empty(),
        Some(response) => {
            let at = shown(response.url());
            let wrong = |reason| Failure::new(Kind::DataLoss, format!("{at}: {reason}"));
            if !is_index(&response) {
                return Err(wrong(
                    "the tag is that of referrers, and has no index".to_owned(),
                ));
            }
            let (stall, limit) = (shared.settings.stall, ReferrerList::MAX_DOCUMENT);
            let bytes = document(response, stall, limit).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| wrong(format!("not an index: {error}")))?
        }
    };
    if !change(&mut index) {
        return Ok(());
    }
    let tag = ReferrerList::tag(subject);
    let bytes = index.to_bytes().map_err(|error| {
        let text = format!("the referrers under the tag {tag}: {}", causes(&error));
        Failure::new(error.kind(), text)
    })?;
    let asked = Asked::Manifest {
        name: &tag,
        media_type: media_type::OCI_INDEX,
        bytes: &bytes.into(),
    };
    session.ask_again(shared, asked).await.map(drop)
}

/// Returns whether the registry lists referrers itself.
pub(crate) async fn is_built_in(
    shared: &Shared,
    session: &mut Session,
    referrer: &Referrer,
    subject: &Digest,
) -> Result<bool, Failure> {
    let asked = Asked::Referrers(subject, &referrer.artifact_type);
    let listed = found(session.ask_again(shared, asked).await)?;
    Ok(listed.is_some_and(|response| is_index(&response)))
}
