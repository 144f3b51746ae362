// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Superblocks, as the kernel's documentation of dm-verity and cryptsetup describe them.
//!
//! ```text
//! 0    "verity\0\0"
//! 8    version 1, hash type 1 (the salt comes before the block): u32 each
//! 16   UUID
//! 32   name of the algorithm, filled up with zeros to 32 bytes
//! 64   size of data blocks, size of hash blocks: u32 each
//! 72   number of data blocks: u64
//! 80   size of the salt: u16, and 6 zeros
//! 88   salt, filled up with zeros to 256 bytes
//! 344  zeros
//! ```
//!
//! Numbers are little endian.

use crate::block::BlockSize;

/// The number of bytes of a superblock.
pub(crate) const SUPERBLOCK: usize = 512;

const MAGIC: [u8; 8] = *b"verity\0\0";
const VERSION: u32 = 1;
const HASH_TYPE: u32 = 1;
const ALGORITHM: [u8; 32] = *b"sha256\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const SALT: usize = 88;
const MAX_SALT: usize = 256;

/// The description of a hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Superblock {
    /// The size of data blocks and of hash blocks.
    pub block: BlockSize,
    /// The number of data blocks.
    pub data_blocks: u64,
    /// An identifier without a meaning for the data.
    pub uuid: [u8; 16],
    /// The bytes that are hashed before each block, at most 256.
    salt: Vec<u8>,
}

/// The reason why bytes are not a superblock that this crate knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SuperblockError {
    /// The bytes do not start as a superblock.
    #[error("it does not start with \"verity\"")]
    Magic,
    /// Another version.
    #[error("its version is {0}, and only 1 is supported")]
    Version(u32),
    /// Another way of hashing.
    #[error("its hash type is {0}, and only 1 is supported")]
    HashType(u32),
    /// Another hash function.
    #[error("its algorithm is \"{}\", and only \"sha256\" is supported", .0.escape_debug())]
    Algorithm(String),
    /// Other block sizes.
    #[error(
        "it has data blocks of {data} and hash blocks of {hash} bytes, and only 512 for both or 4096 for \
         both is supported"
    )]
    BlockSizes {
        /// The size of data blocks.
        data: u32,
        /// The size of hash blocks.
        hash: u32,
    },
    /// A salt that is longer than the place for it.
    #[error("its salt has {0} bytes, and at most 256 are possible")]
    SaltSize(u16),
    /// Bytes without a meaning that are not zero.
    #[error("it has bytes at {0} that should be zero")]
    NotZero(usize),
    /// Data that does not end where the hash area begins.
    #[error("it has {data_blocks} data blocks of {block} bytes, which do not end where it starts")]
    DataBlocks {
        /// The number of data blocks.
        data_blocks: u64,
        /// The size of a block.
        block: u64,
    },
    /// A tree with more digests than there are data blocks.
    #[error("it has {0} data blocks, and the hash tree has digests of more")]
    FewerThanDigests(u64),
}

impl Superblock {
    /// Creates the superblock that containerd and this crate write: with a salt of 32 zero bytes.
    pub fn new(block: BlockSize, data_blocks: u64, uuid: [u8; 16]) -> Self {
        Self {
            block,
            data_blocks,
            uuid,
            salt: vec![0; 32],
        }
    }

    /// Returns what is hashed before each block.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// Returns the bytes of the superblock.
    pub fn encode(&self) -> [u8; SUPERBLOCK] {
        let mut bytes = [0; SUPERBLOCK];
        let block = self.block.len() as u32;
        let mut put = |at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &HASH_TYPE.to_le_bytes());
        put(16, &self.uuid);
        put(32, &ALGORITHM);
        put(64, &block.to_le_bytes());
        put(68, &block.to_le_bytes());
        put(72, &self.data_blocks.to_le_bytes());
        put(80, &(self.salt.len() as u16).to_le_bytes());
        put(SALT, &self.salt);
        bytes
    }

    /// Parses a superblock.
    ///
    /// # Errors
    ///
    /// Versions, algorithms and sizes that this crate does not know are refused, and bytes without a meaning
    /// that are not zero.
    pub fn decode(bytes: &[u8; SUPERBLOCK]) -> Result<Self, SuperblockError> {
        if field::<8>(bytes, 0) != MAGIC {
            return Err(SuperblockError::Magic);
        }
        let number = |at| u32::from_le_bytes(field(bytes, at));
        match (number(8), number(12)) {
            (VERSION, HASH_TYPE) => {}
            (VERSION, hash_type) => return Err(SuperblockError::HashType(hash_type)),
            (version, _) => return Err(SuperblockError::Version(version)),
        }
        let algorithm: [u8; 32] = field(bytes, 32);
        if algorithm != ALGORITHM {
            let name = String::from_utf8_lossy(&algorithm);
            let name = name.trim_end_matches('\0').to_owned();
            return Err(SuperblockError::Algorithm(name));
        }
        let block = match (number(64), number(68)) {
            (512, 512) => BlockSize::B512,
            (4096, 4096) => BlockSize::B4096,
            (data, hash) => return Err(SuperblockError::BlockSizes { data, hash }),
        };
        let salt_size = u16::from_le_bytes(field(bytes, 80));
        let salted = SALT + usize::from(salt_size);
        let salt = bytes
            .get(SALT..salted)
            .filter(|salt| salt.len() <= MAX_SALT)
            .ok_or(SuperblockError::SaltSize(salt_size))?;
        let mut unused = (82..SALT).chain(salted..SUPERBLOCK);
        if let Some(at) = unused.find(|at| bytes[*at] != 0) {
            return Err(SuperblockError::NotZero(at));
        }
        Ok(Self {
            block,
            data_blocks: u64::from_le_bytes(field(bytes, 72)),
            uuid: field(bytes, 16),
            salt: salt.to_vec(),
        })
    }
}

/// Returns the `N` bytes at `at`, which are within the superblock.
fn field<const N: usize>(bytes: &[u8; SUPERBLOCK], at: usize) -> [u8; N] {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().unwrap_or([0; N])
}
