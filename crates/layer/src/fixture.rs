// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers made by hand, byte for byte.

/// A stream under construction.
#[derive(Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

pub(crate) fn octal(value: u64, width: usize) -> Vec<u8> {
    let digits = width - 1;
    format!("{value:0digits$o}\0").into_bytes()
}

/// A number as twelve bytes of base-256, of which the last eight suit shorter fields.
pub(crate) fn binary(value: i64) -> Vec<u8> {
    let mut bytes = i128::from(value).to_be_bytes()[4..].to_vec();
    bytes[0] |= 0x80;
    bytes
}

/// A header of POSIX's format with changes at offsets, and a right checksum.
pub(crate) fn header(
    kind: u8,
    name: impl AsRef<[u8]>,
    size: u64,
    changes: &[(usize, &[u8])],
) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |offset: usize, bytes: &[u8]| {
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, name.as_ref());
    put(100, b"0000644\0");
    put(108, b"0001750\0");
    put(116, b"0001751\0");
    put(124, &octal(size, 12));
    put(136, b"00000001747\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    for (offset, bytes) in changes {
        put(*offset, bytes);
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    if !changes.iter().any(|(offset, _)| *offset == 148) {
        block[148..156].copy_from_slice(&octal(sum, 8));
    }
    block
}

pub(crate) fn record(key: impl AsRef<[u8]>, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_ref(), b"=", value, b"\n"].concat();
    let mut length = body.len();
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &body].concat()
}

impl Tar {
    pub(crate) fn with(
        mut self,
        kind: u8,
        name: impl AsRef<[u8]>,
        data: &[u8],
        changes: &[(usize, &[u8])],
    ) -> Self {
        self.0
            .extend(header(kind, name, data.len() as u64, changes));
        self.data(data)
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.with(b'0', name, data, &[])
    }

    pub(crate) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.with(kind, name, b"", &[(157, target.as_bytes())])
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let records: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        self.with(b'x', "pax", &records, &[])
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}
