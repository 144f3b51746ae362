// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! miniz_oxide's decoder as a reader. flate2 has only one decoder per build, so this is what flate2 would add to it.

use std::io::{self, BufRead, Error, ErrorKind, Read};

use anyhow::{Result, bail};
use flate2::Crc;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// A decoder of one member of gzip.
pub(crate) struct Miniz<R> {
    source: R,
    state: Box<InflateState>,
    /// The checksum of resnap's decoder, so that the difference is one of inflating.
    crc: Crc,
    has_ended: bool,
}

impl<R: BufRead> Miniz<R> {
    /// # Errors
    /// The header has optional fields, or is none.
    pub(crate) fn new(mut source: R) -> Result<Self> {
        let mut header = [0; 10];
        source.read_exact(&mut header)?;
        let [0x1f, 0x8b, 8, 0, ..] = header else {
            bail!("{header:x?} is no header without optional fields");
        };
        Ok(Self {
            source,
            state: InflateState::new_boxed(DataFormat::Raw),
            crc: Crc::new(),
            has_ended: false,
        })
    }

    fn verify(&mut self) -> io::Result<()> {
        let (mut crc, mut size) = ([0; 4], [0; 4]);
        self.source.read_exact(&mut crc)?;
        self.source.read_exact(&mut size)?;
        let want = (u32::from_le_bytes(crc), u32::from_le_bytes(size));
        if (self.crc.sum(), self.crc.amount()) == want {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidData, "wrong checksum or size"))
    }
}

impl<R: BufRead> Read for Miniz<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() && !self.has_ended {
            let input = self.source.fill_buf()?;
            let is_over = input.is_empty();
            let result = inflate(&mut self.state, input, buffer, MZFlush::None);
            self.source.consume(result.bytes_consumed);
            let output = buffer.get(..result.bytes_written).unwrap_or_default();
            self.crc.update(output);
            match result.status {
                Ok(MZStatus::StreamEnd) => {
                    self.has_ended = true;
                    self.verify()?;
                }
                Ok(_) => {}
                // More input is needed.
                Err(MZError::Buf) if !is_over => {}
                Err(MZError::Buf) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) => {
                    let text = format!("miniz_oxide: {error:?}");
                    return Err(Error::new(ErrorKind::InvalidData, text));
                }
            }
            if !output.is_empty() {
                return Ok(output.len());
            }
        }
        Ok(0)
    }
}
