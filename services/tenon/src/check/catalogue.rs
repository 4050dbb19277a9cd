//! What is checked: one row a check. `docs/check.md` has a section on each, which a test compares.

/// One check. Ids never change their meaning; of a check that goes the id stays unused.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    pub id: &'static str,
    /// As findings name it.
    pub name: &'static str,
    /// What is wrong when it fails.
    pub wrong: &'static str,
    /// Why that matters.
    pub why: &'static str,
}

impl Check {
    /// Where it is described, below the top of the repository.
    pub fn anchor(&self) -> String {
        format!("docs/check.md#{}-{}", self.id.to_lowercase(), self.name)
    }
}

/// Names the checks, and lists them.
macro_rules! checks {
    ($($constant:ident $id:literal $name:literal $wrong:literal $why:literal)*) => {
        $(pub const $constant: &Check = &Check { id: $id, name: $name, wrong: $wrong, why: $why };)*
        /// All of them, by id.
        pub const ALL: &[&Check] = &[$($constant),*];
    };
}

checks! {
    REACHABLE "TC001" "reachable"
        "A process of the control plane does not serve."
        "Sidecars go on deciding by what they have. What that process does is not done: no change arrives, or no certificate is renewed."
    KEY_REPOSITORY "TC002" "key-repository"
        "The key repository does not answer over HTTPS."
        "The mesh does not need it. ASAP libraries outside of the mesh cannot verify its tokens."
    READY "TC003" "ready"
        "A sidecar is not ready."
        "Its app neither is called nor calls."
    CLOCK "TC004" "clock"
        "The clock of a sidecar differs from this machine's by more than a minute."
        "Tokens and certificates are valid for a time: beyond a minute of skew calls are refused."
    CERTIFICATE "TC005" "certificate"
        "A certificate ends soon and should have been renewed, or nothing can renew it."
        "When it ends, every connection of its owner is refused."
    ROOT "TC006" "root"
        "A root certificate ends within 60 days."
        "When the last root ends nobody trusts anybody. A new root must be known everywhere before it signs, which takes its time."
    REPLICATION "TC007" "replication"
        "A sidecar does not follow a kind, or is behind the head of it."
        "It decides by what was true earlier: a suspended tenant may still be served, a new rule not yet apply."
    ACCEPTED "TC008" "accepted"
        "A follower refused a change."
        "It keeps what it had, so it and the others decide differently."
    TOGETHER "TC009" "together"
        "Processes of one service are at different positions."
        "Who asks the one that is behind is told what was true earlier."
    ALARM "TC010" "alarm"
        "A service says that something is wrong with what it distributes."
        "It serves what was good before, and nothing that came later."
    POLICY "TC011" "policy"
        "The watched policy folder has a mistake, or the policy cannot be asked for."
        "The last good policy is enforced; what was changed since is not."
    QUARANTINE "TC012" "quarantine"
        "A service or an outside client is cut off."
        "Every call from it and to it is refused, QUARANTINED."
    ROLLOUT "TC013" "rollout"
        "The last rollout was halted."
        "The policy that somebody wanted is in force nowhere."
    SERVED "TC014" "served"
        "Rules allow calls of a service of which there is no instance."
        "Calls to it are refused, NO_ENDPOINT; or its name is a mistake, and the rules are meant for another one."
    ENDPOINT "TC015" "endpoint"
        "Where an instance should be, no sidecar of that service answers."
        "Calls that go there fail and are tried elsewhere; when it is the only one, they are refused, UPSTREAM_CONNECT."
    PORT "TC016" "port"
        "On the address of a process somebody else answers, or nobody who speaks mTLS."
        "Whoever calls it is refused by the handshake."
    VERSION "TC017" "version"
        "Not all processes run the same version."
        "During an upgrade that is as it should be. Afterwards, what is new is enforced in some places and not in others."
    DISK "TC018" "disk"
        "The file system of the data folder has less than 1 GiB left; where it is no larger than that, less than a twentieth."
        "On a full disk nothing is written: no tenant is changed, no certificate recorded, no revocation made."
    APP "TC019" "app"
        "Nothing listens where a sidecar's app should."
        "Calls of it are refused, UPSTREAM_CONNECT."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_and_the_document_has_a_section_on_each_with_its_words() {
        let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/check.md")).unwrap();
        let sections: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("## TC")).collect();
        let expected: Vec<String> = ALL.iter().map(|check| format!("{} {}", &check.id[2..], check.name)).collect();
        assert_eq!(sections, expected);
        let words = document.split_whitespace().collect::<Vec<_>>().join(" ");
        for (index, check) in ALL.iter().enumerate() {
            assert_eq!(check.id, format!("TC{:03}", index + 1));
            assert!(words.contains(check.wrong) && words.contains(check.why), "{}", check.id);
        }
    }
}
