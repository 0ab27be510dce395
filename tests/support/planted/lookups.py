"""Defects planted in the rules for lookups, by the property that must catch them."""

MUTANTS = {
    "silent_names_leave_threads_to_names_that_answer": [
        ("MAX_LOOKUPS - RESERVED_LOOKUPS", "MAX_LOOKUPS"),
        ("if known: return True", ""),
        (
            "lookup.standing is not Standing.ANSWERED for",
            "lookup.standing is Standing.UNKNOWN for",
        ),
        ("lookup.standing is not Standing.ANSWERED for", "True for"),
    ],
    "no_more_threads_than_there_are": [
        ("len(running) >= MAX_LOOKUPS:", "len(running) > MAX_LOOKUPS:"),
        ("if len(running) >= MAX_LOOKUPS: return False", ""),
    ],
    "names_in_trouble_share_few_threads": [
        ("_troubled(running) < MAX_TROUBLED", "_troubled(running) <= MAX_TROUBLED"),
        ("standing is Standing.UNKNOWN or", "False or"),
    ],
    "a_domain_holds_few_threads_once_its_lookups_are_slow": [
        ("now - lookup.began_at >= SLOW_AFTER_S", "True"),
        ("now - lookup.began_at >= SLOW_AFTER_S", "now - lookup.began_at > SLOW_AFTER_S"),
        ("MAX_SLOW_OF_KNOWN_DOMAIN if known else MAX_SLOW_OF_DOMAIN", "MAX_SLOW_OF_DOMAIN"),
        ("MAX_SLOW_OF_KNOWN_DOMAIN if known else MAX_SLOW_OF_DOMAIN", "MAX_SLOW_OF_KNOWN_DOMAIN"),
        ("len(of_domain) >= MAX_OF_DOMAIN or", ""),
        ("_troubled(of_domain) < MAX_TROUBLED_OF_DOMAIN", "True"),
        ("if lookup.domain == domain", ""),
    ],
    "a_domain_is_two_labels": [
        ('host.rstrip(".").rsplit', "host.rsplit"),
        ('rsplit(".", 2)[-2:]', 'rsplit(".", 2)[-1:]'),
    ],
    "pauses_grow_to_a_minute": [
        ("MAX_PAUSE_S = 60.0", "MAX_PAUSE_S = 600.0"),
        ("self.pause.longer()", "self.pause"),
        ("if now < self.until: return self", ""),
        ("if now < self.until:", "if now <= self.until:"),
        ("now - self.until >= FORGOTTEN_S", "False"),
        ("now - self.until >= FORGOTTEN_S", "now - self.since >= FORGOTTEN_S"),
        ("replace(self, reason=reason,", "replace(self, reason=reason, since=now,"),
    ],
}
