"""Labels of a service by which it says what Docker's API has no field for.

Labels, so that the docker command, its SDKs and compose files can say it as well. What they mean,
and which values they take, stands in docs/services.md; `manager/wishes.py` reads them.
"""

PREFIX = "shoal."
DEPENDS_ON = "shoal.depends_on"
LOSS_GRACE = "shoal.loss_grace"
AUTOSCALE = "shoal.autoscale"
AUTOSCALE_CPU = "shoal.autoscale.cpu"
AUTOSCALE_MEMORY = "shoal.autoscale.memory"
AUTOSCALE_COOLDOWN = "shoal.autoscale.cooldown"
SCHEDULE = "shoal.schedule"
SCHEDULE_OVERLAP = "shoal.schedule.overlap"
SCHEDULE_HISTORY = "shoal.schedule.history"
REBALANCE = "shoal.rebalance"  # of a service: on or off; of the cluster: moves a minute
