// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Matching and ordering of platforms (containerd/platforms `platforms.go` and `compare.go`).

use std::cmp::Reverse;

use crate::vector::vector;
use crate::{Platform, windows};

/// The only feature of Windows images, which older versions ignored.
const WIN32K: &str = "win32k";

/// A rule for which platforms are acceptable and which of two is better (`MatchComparer` in
/// `compare.go`).
///
/// A candidate is acceptable to a platform of the matcher if operating system,
/// architecture and variant are the same after
/// [normalisation](Platform::normalized) and the matcher's platform offers
/// every feature the candidate asks for; for Windows the version must be
/// compatible too. The [default](Matcher::default) is [`Matcher::only`] of
/// [`Platform::host`], which offers no features.
#[derive(Clone, Debug)]
pub struct Matcher {
    rule: Rule,
    features: Features,
}

/// The treatment of a candidate's features.
#[derive(Clone, Copy, Debug)]
enum Features {
    Considered,
    Ignored,
}

/// The acceptable platforms, normalised.
#[derive(Clone, Debug)]
enum Rule {
    All,
    Any(Vec<Platform>),
    Ordered(Vec<Platform>),
    OnlyOs(Platform),
}

/// The rank of an acceptable candidate; the least is the best. The position of the matcher's platform
/// comes first, so architecture counts more than features.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    position: usize,
    features: Reverse<usize>,
}

impl Rank {
    /// The rank of candidates without any preference.
    const INDIFFERENT: Self = Self {
        position: usize::MAX,
        features: Reverse(0),
    };
}

/// The position of any platform in the order; the least is the best.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Acceptable(Rank),
    /// Would be acceptable without its features.
    AskingTooMuch(Rank),
    Refused,
}

impl Matcher {
    /// Accepts the platform and others that such a CPU runs, for example `386` on `amd64` and lower
    /// variants (`Only`). Accepts nothing for an unknown arm64 variant.
    pub fn only(platform: &Platform) -> Self {
        Self::ordered(&vector(&platform.normalized()))
    }

    /// Accepts just the platform (`OnlyStrict`; matches like `NewMatcher`).
    pub fn only_strict(platform: &Platform) -> Self {
        Self::of(Rule::Ordered(vec![platform.normalized()]))
    }

    /// Accepts every architecture of the platform's operating system, version
    /// and features, the platform's own first (`OnlyOS`).
    pub fn only_os(platform: &Platform) -> Self {
        Self::of(Rule::OnlyOs(platform.normalized()))
    }

    /// Accepts each of the platforms, earlier ones first (`Ordered`).
    pub fn ordered(platforms: &[Platform]) -> Self {
        Self::of(Rule::Ordered(normalized(platforms)))
    }

    /// Accepts each of the platforms, none before another; only the number of
    /// features counts (`Any`).
    pub fn any(platforms: &[Platform]) -> Self {
        Self::of(Rule::Any(normalized(platforms)))
    }

    /// Accepts every platform, all alike (`All`).
    pub fn all() -> Self {
        Self::of(Rule::All)
    }

    /// Returns this matcher without regard to the features of candidates, as containerd/platforms before
    /// 1.0.0-rc.4 and containerd up to 2.2 match.
    #[must_use]
    pub fn ignoring_features(self) -> Self {
        Self {
            features: Features::Ignored,
            ..self
        }
    }

    fn of(rule: Rule) -> Self {
        Self {
            rule,
            features: Features::Considered,
        }
    }

    /// Returns whether the platform is acceptable.
    pub fn matches(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }

    /// Returns whether `a` is better than `b`: an acceptable one is better than one that is not, an
    /// earlier one better than a later one, and of two equal ones the one with more features. If neither
    /// is acceptable, they are compared without their features.
    ///
    /// This is a strict weak order over all platforms.
    pub fn less(&self, a: &Platform, b: &Platform) -> bool {
        self.standing(a) < self.standing(b)
    }

    /// Returns the acceptable candidates, best first, equal ones in the given order. `images.Manifest`
    /// of containerd `core/images/image.go` does the same with the entries of an index, and takes the
    /// first.
    ///
    /// A candidate without platform is kept, after all others: only its image config shows whether it
    /// matches.
    pub fn pick<'a, T>(
        &self,
        candidates: impl IntoIterator<Item = (Option<&'a Platform>, T)>,
    ) -> Vec<T> {
        let mut ranked: Vec<_> = candidates
            .into_iter()
            .filter_map(|(platform, candidate)| {
                let rank = match platform {
                    Some(platform) => self.rank(platform)?,
                    None => Rank::INDIFFERENT,
                };
                Some(((platform.is_none(), rank), candidate))
            })
            .collect();
        // By key and not by a closure over `less`: the standard sorts may panic
        // on an inconsistent closure, and no candidate can make these keys so.
        ranked.sort_by_key(|(key, _)| *key);
        ranked.into_iter().map(|(_, candidate)| candidate).collect()
    }

    fn standing(&self, platform: &Platform) -> Standing {
        if let Some(rank) = self.rank(platform) {
            return Standing::Acceptable(rank);
        }
        let without_features = match self.rule {
            Rule::Any(_) | Rule::Ordered(_) => self.rank(&Platform {
                os_features: Vec::new(),
                ..platform.clone()
            }),
            Rule::All | Rule::OnlyOs(_) => None,
        };
        without_features.map_or(Standing::Refused, Standing::AskingTooMuch)
    }

    /// Returns the rank of a platform, or `None` if it is not acceptable.
    fn rank(&self, platform: &Platform) -> Option<Rank> {
        let mut candidate = platform.normalized();
        // The reference counts duplicates too.
        let mut features = platform.os_features.len();
        if matches!(self.features, Features::Ignored) {
            candidate.os_features.clear();
            features = 0;
        }
        let position = match &self.rule {
            Rule::All => return Some(Rank::INDIFFERENT),
            Rule::Any(offers) => offers
                .iter()
                .any(|offer| accepts(offer, &candidate))
                .then_some(0)?,
            Rule::Ordered(offers) => offers.iter().position(|offer| accepts(offer, &candidate))?,
            Rule::OnlyOs(offer) if !accepts_os(offer, &candidate, None) => return None,
            Rule::OnlyOs(offer) if accepts(offer, &candidate) => 0,
            Rule::OnlyOs(_) => return Some(Rank::INDIFFERENT),
        };
        Some(Rank {
            position,
            features: Reverse(features),
        })
    }
}

impl Default for Matcher {
    fn default() -> Self {
        Self::only(&Platform::host())
    }
}

fn normalized(platforms: &[Platform]) -> Vec<Platform> {
    platforms.iter().map(Platform::normalized).collect()
}

fn accepts(offer: &Platform, candidate: &Platform) -> bool {
    let ignored = (offer.os == "windows").then_some(WIN32K);
    offer.architecture == candidate.architecture
        && offer.variant == candidate.variant
        && accepts_os(offer, candidate, ignored)
}

fn accepts_os(offer: &Platform, candidate: &Platform, ignored: Option<&str>) -> bool {
    offer.os == candidate.os
        && (offer.os != "windows"
            || windows::is_compatible(&offer.os_version, &candidate.os_version))
        && candidate.os_features.iter().all(|feature| {
            ignored == Some(feature.as_str()) || offer.os_features.binary_search(feature).is_ok()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(specifier: &str) -> Platform {
        specifier.parse().unwrap()
    }

    fn universe() -> Vec<Platform> {
        let mut universe = vec![Platform::default()];
        for os in ["linux", "windows", "windows(10.0.20348)"] {
            for features in ["", "+a", "+b", "+a+b", "+a+a", "+win32k", "+c"] {
                for machine in ["amd64", "amd64/v2", "386", "arm64", "arm/v6"] {
                    let os = match os.strip_suffix(')') {
                        Some(os) => format!("{os}{features})"),
                        None if features.is_empty() => os.to_owned(),
                        None => format!("{os}({features})"),
                    };
                    universe.push(platform(&format!("{os}/{machine}")));
                }
            }
        }
        universe
    }

    fn matchers() -> Vec<Matcher> {
        let platforms = [
            "linux(+a+b)/amd64/v2",
            "windows(10.0.26100+a)/amd64",
            "linux/arm64",
        ];
        let platforms = platforms.map(platform);
        let mut matchers = vec![
            Matcher::all(),
            Matcher::default(),
            Matcher::any(&platforms),
            Matcher::any(&[]),
            Matcher::ordered(&platforms),
            Matcher::ordered(&[]),
        ];
        for platform in &platforms {
            matchers.extend([
                Matcher::only(platform),
                Matcher::only_strict(platform),
                Matcher::only_os(platform),
            ]);
        }
        matchers
    }

    /// The algorithm of Go's stable sort for up to 20 entries.
    fn insertion_sort(matcher: &Matcher, kept: &mut [&Platform]) {
        for end in 1..kept.len() {
            let mut at = end;
            while at > 0 && matcher.less(kept[at], kept[at - 1]) {
                kept.swap(at, at - 1);
                at -= 1;
            }
        }
    }

    #[test]
    fn pick_agrees_with_sorting_by_less() {
        let universe = universe();
        for matcher in matchers() {
            for offset in 0..universe.len() {
                // A stride that is prime to the length shuffles the list.
                let shuffled = (0..universe.len())
                    .map(|index| &universe[(offset + index * 31) % universe.len()]);
                let mut expected: Vec<_> =
                    shuffled.clone().filter(|p| matcher.matches(p)).collect();
                insertion_sort(&matcher, &mut expected);
                let picked = matcher.pick(shuffled.map(|p| (Some(p), p)));
                assert_eq!(picked, expected, "{matcher:?}");
            }
        }
    }

    #[test]
    fn candidates_without_platform_come_last() {
        let (plain, other) = (platform("linux/amd64"), platform("linux/s390x"));
        let matcher = Matcher::only(&plain);
        let candidates = [(None, 0), (Some(&other), 1), (Some(&plain), 2), (None, 3)];
        assert_eq!(matcher.pick(candidates), [2, 0, 3]);
        assert_eq!(Matcher::all().pick(candidates), [1, 2, 0, 3]);
    }

    #[test]
    fn features_can_be_ignored() {
        let (plain, native) = (platform("linux/amd64"), platform("linux(+erofs)/amd64"));
        let matcher = Matcher::only(&plain).ignoring_features();
        let candidates = [(Some(&native), 0), (Some(&plain), 1)];
        assert_eq!(matcher.pick(candidates), [0, 1]);
        assert_eq!(matcher.pick(candidates.into_iter().rev()), [1, 0]);
        assert_eq!(Matcher::only(&plain).pick(candidates), [1]);
    }

    #[test]
    fn many_hostile_candidates_are_sorted_soon() {
        let (last, first) = (platform("linux/386"), platform("linux(+a)/amd64"));
        let matcher = Matcher::only(&platform("linux(+a)/amd64/v999999999"));
        let candidates = (0..20_000).map(|i| (Some(if i < 10_000 { &last } else { &first }), i));
        assert_eq!(matcher.pick(candidates).first(), Some(&10_000));
    }

    #[test]
    fn can_be_shared_between_threads() {
        fn check<T: Send + Sync + Clone + std::fmt::Debug + 'static>(_: T) {}
        check(Matcher::default());
    }
}
