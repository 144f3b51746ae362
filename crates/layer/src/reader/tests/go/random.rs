// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Random recipes.

use super::*;

/// Marsaglia's xorshift.
struct Random {
    state: u64,
    /// Whether there is much that nobody takes.
    is_wild: bool,
}

/// Values that are taken often, and values that are taken seldom.
struct Choices(&'static [&'static str], &'static [&'static str]);

impl Random {
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn text(&mut self, choices: &Choices) -> &'static str {
        match self.is_wild && self.one_in(2) {
            true => self.of(choices.1),
            false => self.of(choices.0),
        }
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.next() >> 8 & 0xffff_ffff < (1 << 32) / count
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        let at = (self.next() >> 8) % choices.len() as u64;
        choices[at as usize]
    }
}

const NAMES: Choices = Choices(
    &[
        "a",
        "b",
        "d",
        "d/a",
        "d/",
        "a/",
        "./a",
        "../a",
        "d/../a",
        "d/../../b",
        "/a",
        "//d//b",
        ".",
        "./",
        "",
        ".wh.a",
        "d/.wh.a",
        ".wh..wh..opq",
        "d/.wh..wh..opq",
        ".wh..wh.plnk",
        ".wh..wh.plnk/a",
        ".wh.a/b",
        "d/.wh.a/",
        "pax_global_header",
        "pax_global_header/a",
        "evil",
        "%FFa",
        "{n*100}",
        ".wh.{n*90}",
    ],
    &["/", "..", ".wh.", ".wh..", ".wh..."],
);

/// Longer than the field for names.
const LONG: Choices = Choices(
    &[
        "{n*255}",
        ".wh.{n*255}",
        "{n*256}/../a",
        "d/{n/*80}a",
        ".wh..wh.{n*250}",
    ],
    &["{n*256}", ".wh.{n*256}", ".wh.{n*252}/a"],
);

const TYPES: Choices = Choices(
    &[
        "0", "0", "0", "0", "0", "%00", "%00", "1", "2", "3", "4", "5", "5", "6", "7", "S", "L",
        "K",
    ],
    &["x", "g", "V", "X"],
);

const NUMBERS: Choices = Choices(
    &[
        "0000000%00",
        "0000017%00",
        "%20%20%20%2017%20%00",
        "17{%00*6}",
        "{%20*7}%00",
        "{%00*8}",
        "%80{%00*6}%07",
        "12%0034%00%00%00",
        "00000017",
        "%20%00%2017%20%00%20",
        "%00%00%0017%00%00%00",
    ],
    &[
        "{%FF*7}%FE",
        "%80%00%00%00{%FF*4}",
        "%80%00%00%01{%00*4}",
        "12%2034%00%00%00",
        "12%20%0034%00%00",
        "0000008%00",
        "-000001%00",
        "+000001%00",
        "x{%00*7}",
        "%C0{%00*7}",
    ],
);

const DECIMALS: Choices = Choices(
    &["", "", "0", "1", "5", "7", "512", "1024", "+3", "03", "-0"],
    &[
        "-1",
        "4294967295",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "x",
        "%201",
        "1%20",
        "1_0",
        "0x1",
        "1.5",
    ],
);

const TIMES: Choices = Choices(
    &[
        "",
        "0",
        "1.5",
        "-1.5",
        "-0.25",
        "1.",
        "1.1234567899",
        "+1.5",
        "9223372036854775807.5",
    ],
    &[".5", "1.x", "-", "1..5", "1e3", "-9223372036854775808.5"],
);

const MAPS: Choices = Choices(
    &["0,5", "0,3,5,2", "+0,5", "1,4,8,0", "0,0,0,5"],
    &[
        "",
        "0,3",
        "5,0",
        "0,3,2,3",
        "0,3,",
        "-1,3",
        "x,1",
        "0,9223372036854775807",
    ],
);

const LINES: Choices = Choices(
    &[
        "1%0A0%0A5%0A",
        "2%0A0%0A3%0A9%0A2%0A",
        "1%0A0%0A5%0Arest",
        "01%0A00%0A5%0A",
        "2%0A0%0A0%0A0%0A5%0A",
    ],
    &[
        "0%0A",
        "1%0A+0%0A5%0A",
        "%0A",
        "1%0A0%0A",
        "-1%0A",
        "x%0A",
        "99999999%0A",
        "1%0A3%0A2%0A",
    ],
);

fn pax(random: &mut Random) -> String {
    let mut records = Vec::new();
    for _ in 0..random.of(&[1, 1, 1, 2, 2, 3, 4]) {
        let (key, value) = match random.of(&[0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6]) {
            0 => (
                "path",
                if random.one_in(4) {
                    random.text(&LONG)
                } else {
                    random.text(&NAMES)
                },
            ),
            1 => ("linkpath", random.text(&NAMES)),
            2 => (
                random.of(&["size", "uid", "gid", "uid", "gid"]),
                random.text(&DECIMALS),
            ),
            3 => (random.of(&["mtime", "atime", "ctime"]), random.text(&TIMES)),
            4 => (
                random.of(&["uname", "gname", "comment", "k%00k", "GNU.sparse.name"]),
                random.of(&["", "x", "x%00y"]),
            ),
            5 => (
                random.of(&[
                    "SCHILY.xattr.user.a",
                    "SCHILY.xattr.user.b",
                    "SCHILY.xattr.",
                ]),
                random.of(&["", "v", "%00%FF"]),
            ),
            _ => {
                records.push(sparse(random));
                continue;
            }
        };
        records.push(format!("{key}={value}"));
    }
    records.join(";")
}

fn sparse(random: &mut Random) -> String {
    if random.one_in(2) {
        let (key, value) = match random.of(&[0, 1, 2, 3, 4, 5]) {
            0 => ("major", random.of(&["", "0", "1", "2"])),
            1 => ("minor", random.of(&["", "0", "1", "2"])),
            2 => ("name", random.text(&NAMES)),
            3 => (
                random.of(&["size", "realsize", "numblocks"]),
                random.text(&DECIMALS),
            ),
            4 => ("map", random.text(&MAPS)),
            _ => (
                random.of(&["offset", "numbytes"]),
                random.of(&["", "0", "5", "1,2"]),
            ),
        };
        return format!("GNU.sparse.{key}={value}");
    }
    let size = random.of(&["5", "20", "11", "", "4"]);
    let name = random.of(&["", "GNU.sparse.name=evil;", "GNU.sparse.name=d/;"]);
    match random.of(&[0, 1, 2]) {
        0 => format!(
            "{name}GNU.sparse.size={size};GNU.sparse.numblocks=1;GNU.sparse.offset=0;GNU.sparse.numbytes=5"
        ),
        1 => format!(
            "{name}GNU.sparse.realsize={size};GNU.sparse.numblocks={};GNU.sparse.map={}",
            random.of(&["0", "1", "2"]),
            random.text(&MAPS)
        ),
        _ => format!("GNU.sparse.major=1;GNU.sparse.minor=0;{name}GNU.sparse.realsize={size}"),
    }
}

/// Returns a header with its data.
fn header(random: &mut Random) -> String {
    let kind = random.text(&TYPES);
    let data = match kind {
        "x" | "g" if random.one_in(2) => random
            .of(&[
                "",
                "x",
                "9%20a=b%0A",
                "6%20a=b%0A",
                "+6%20a=b%0A",
                "006%20a=%0A",
                "4%20a=%0A",
            ])
            .to_owned(),
        "L" | "K" => format!("{}{}", random.text(&NAMES), random.of(&["", "%00", "%00x"])),
        "1" | "2" | "3" | "5" => random.of(&["", "", "", "hello"]).to_owned(),
        _ => match random.of(&[0, 1, 1, 1, 2, 3]) {
            0 => String::new(),
            1 => "hello".to_owned(),
            2 => format!("{{%00*{}}}", random.of(&[512, 511, 700])),
            _ => {
                let lines = random.text(&LINES);
                let length = bytes(lines).len();
                format!("{lines}{{%00*{}}}hello", 512 - length)
            }
        },
    };
    let mut text = format!("{kind}:{}:{data}", random.text(&NAMES));
    if random.one_in(3) {
        text += random.of(&[
            "@gnu",
            "@magic={%00*8}",
            "@star=tar%00",
            "@magic=ustar%00xx",
            "@magic=USTAR%0000",
        ]);
    }
    if matches!(kind, "1" | "2") {
        write!(text, "@link={}", random.text(&NAMES)).unwrap();
    }
    if random.one_in(5) {
        let field = random.of(&["mode", "uid", "gid", "major", "minor", "sum"]);
        write!(text, "@{field}={}", random.text(&NUMBERS)).unwrap();
    }
    if random.one_in(12) {
        let field = random.of(&["size", "mtime", "star-atime", "prefix", "ctime"]);
        write!(text, "@{field}={}%00%00%00%00", random.text(&NUMBERS)).unwrap();
    }
    if random.one_in(8) {
        write!(
            text,
            "@prefix={}",
            random.of(&[
                "etc",
                "a/b",
                "%FF",
                "..",
                "12",
                "{p*155}",
                "00000000017%00x"
            ])
        )
        .unwrap();
    }
    if kind == "S" && !random.one_in(6) {
        text += "@gnu";
        write!(
            text,
            "@real={}",
            random.of(&["00000000005%00", "00000000024%00", "00000000004%00", "x"])
        )
        .unwrap();
        let pair = random.of(&[
            "{0*11}%00{0*10}5%00",
            "00000000003%0000000000002%00",
            "{%00*24}",
            "{0*11}%00{0*10}3%00",
        ]);
        write!(text, "@sparse={pair}").unwrap();
        if random.one_in(2) {
            let pair = random.of(&[
                "00000000003%0000000000002%00",
                "00000000002%0000000000002%00",
                "{%00*24}",
            ]);
            write!(text, "@pair2={pair}").unwrap();
        }
        if random.one_in(4) {
            text += "@more=%01";
            let pair = random.of(&[
                "00000000003%0000000000002%00",
                "{%00*24}",
                "00000000005%0000000000000%00",
            ]);
            write!(text, " raw:{pair}{{%00*488}}").unwrap();
        }
    }
    text
}

fn recipe(random: &mut Random) -> String {
    random.is_wild = random.one_in(4);
    let mut tokens = Vec::new();
    for _ in 0..random.of(&[1, 2, 2, 3, 3, 4, 5]) {
        let token = match random.of(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3]) {
            1 => format!("pax:{}", pax(random)),
            2 => format!("global:{}:{}", random.text(&NAMES), pax(random)),
            3 if random.is_wild && random.one_in(3) => random
                .of(&[
                    "raw:{%00*512}",
                    "raw:{%00*1024}",
                    "raw:x{%00*511}",
                    "raw:abc",
                ])
                .to_owned(),
            3 => format!("0:{}:data", random.text(&NAMES)),
            _ => header(random),
        };
        tokens.push(token);
    }
    if !random.one_in(10) {
        tokens.push(format!("0:{}:last", random.text(&NAMES)));
    }
    if random.one_in(20) {
        tokens.push(format!("cut:{}", random.next() % 4096));
    }
    tokens.join(" ")
}

#[test]
#[ignore = "needs the program in Go"]
fn random_streams() {
    let number =
        |name: &str, other: u64| std::env::var(name).map_or(other, |value| value.parse().unwrap());
    let mut random = Random {
        state: number("RESNAP_GO_SEED", 1) | 1 << 40,
        is_wild: false,
    };
    let count = number("RESNAP_GO_STREAMS", 100_000);
    let (mut both, mut refused, mut on_purpose) = (0, 0, std::collections::BTreeMap::new());
    let mut differences = Vec::new();
    for _ in 0..count.div_ceil(1000) {
        let recipes: Vec<String> = (0..1000).map(|_| recipe(&mut random)).collect();
        let answers = ask(recipes.iter().map(|recipe| stream(recipe)));
        assert_eq!(answers.len(), recipes.len());
        for (recipe, go) in recipes.iter().zip(&answers) {
            match difference(&stream(recipe), go) {
                Ok("") if go == "error" => refused += 1,
                Ok("") => both += 1,
                Ok(name) => *on_purpose.entry(name).or_insert(0) += 1,
                Err(difference) => differences.push(format!("{recipe}: {difference}")),
            }
        }
    }
    println!("{both} read alike, {refused} refused by both, refused on purpose: {on_purpose:?}");
    let shown: Vec<_> = differences.iter().take(30).map(String::as_str).collect();
    assert!(
        differences.is_empty(),
        "{} of {count}:\n{}",
        differences.len(),
        shown.join("\n")
    );
}
