DELETE FROM pggit.workers WHERE incarnation = %(incarnation)s
