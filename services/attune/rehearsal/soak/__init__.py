"""Random faults between the spool and the datasets, from seeds: nothing acknowledged is lost, doubled or invented."""
