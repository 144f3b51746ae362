// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! ISA-L's decoder as a reader. All unsafe code of the program is here.

#![expect(
    unsafe_code,
    reason = "isal-sys has the functions of C and nothing around them"
)]

use std::io::{self, BufRead, Error, ErrorKind, Read};
use std::ptr;

use isal_sys::igzip_lib::{
    ISAL_GZIP, inflate_state, isal_block_state_ISAL_BLOCK_FINISH, isal_inflate, isal_inflate_init,
};

/// A decoder of one member of gzip.
pub(crate) struct Isal<R> {
    source: R,
    /// The state, of more than 80 KiB. Its pointers to buffers are null between calls.
    state: Box<inflate_state>,
}

impl<R: BufRead> Isal<R> {
    pub(crate) fn new(source: R) -> Self {
        // SAFETY: The structure consists of integers, raw pointers, and arrays, structures and unions of them, so
        // zeros are a value of it.
        let mut state = unsafe { Box::<inflate_state>::new_zeroed().assume_init() };
        // SAFETY: The pointer is to a whole structure that nothing else refers to. The function only sets fields.
        unsafe { isal_inflate_init(&mut *state) };
        // It reads the header, and compares the checksum and the size with what follows the data.
        state.crc_flag = ISAL_GZIP;
        Self { source, state }
    }
}

impl<R: BufRead> Read for Isal<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let state = &mut *self.state;
        while !buffer.is_empty() && state.block_state != isal_block_state_ISAL_BLOCK_FINISH {
            let input = self.source.fill_buf()?;
            let (length, space) = (clamped(input), clamped(buffer));
            state.next_in = input.as_ptr().cast_mut();
            state.avail_in = length;
            state.next_out = buffer.as_mut_ptr();
            state.avail_out = space;
            // SAFETY: The state was initialized. The input has at least `avail_in` bytes, which the function only
            // reads although the pointer is mutable, and the output has at least `avail_out`. Both are borrowed
            // until after the call, and do not overlap. The function keeps what it needs of them in the state.
            let status = unsafe { isal_inflate(state) };
            (state.next_in, state.next_out) = (ptr::null_mut(), ptr::null_mut());
            let used = length - state.avail_in;
            let count = space - state.avail_out;
            self.source.consume(used as usize);
            if status < 0 {
                let text = format!("ISA-L: error {status}");
                return Err(Error::new(ErrorKind::InvalidData, text));
            }
            if count > 0 {
                return Ok(count as usize);
            }
            // The last call may have been what ended the member.
            if used == 0 && state.block_state != isal_block_state_ISAL_BLOCK_FINISH {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

/// Returns the length, or the most that the type of the field can have.
fn clamped(bytes: &[u8]) -> u32 {
    bytes.len().try_into().unwrap_or(u32::MAX)
}
