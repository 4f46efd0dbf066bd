# Alert policies for each function, if `notification_channels` names a channel.

locals {
  watched = length(var.notification_channels) > 0 ? local.functions : {}

  # A function is a Cloud Run service of the same name.
  service_filters = {
    for folder, function in local.watched :
    folder => "resource.type = \"cloud_run_revision\" AND resource.labels.service_name = \"${function.name}\""
  }
}

resource "google_monitoring_alert_policy" "responds_with_errors" {
  for_each = local.service_filters

  display_name          = "${local.functions[each.key].name} responds with errors"
  combiner              = "OR"
  notification_channels = var.notification_channels

  documentation {
    mime_type = "text/markdown"
    content   = "More than 5 % of the responses within five minutes had a status of 500 or higher. A task that fails is such a response: see the run in Dagster, then the function's logs."
  }

  conditions {
    display_name = "More than 5 % of the responses are 5xx"

    condition_threshold {
      filter             = "${each.value} AND metric.type = \"run.googleapis.com/request_count\" AND metric.labels.response_code_class = \"5xx\""
      denominator_filter = "${each.value} AND metric.type = \"run.googleapis.com/request_count\""
      comparison         = "COMPARISON_GT"
      threshold_value    = 0.05
      duration           = "0s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
      }

      denominator_aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_RATE"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  # Without requests, nothing is measured, and the incident would stay open for days.
  alert_strategy {
    auto_close = "1800s"
  }

  depends_on = [google_project_service.api]
}

resource "google_monitoring_alert_policy" "is_at_its_limit" {
  for_each = local.service_filters

  display_name          = "${local.functions[each.key].name} has no instance left"
  combiner              = "OR"
  notification_channels = var.notification_channels

  documentation {
    mime_type = "text/markdown"
    content   = "All ${local.functions[each.key].max_instances} instances were running for ten minutes. Google rejects further requests with 429, and Dagster retries them. Raise `max_instances` in infra/environments, or limit the runs."
  }

  conditions {
    display_name = "All instances are running"

    condition_threshold {
      filter          = "${each.value} AND metric.type = \"run.googleapis.com/container/instance_count\" AND metric.labels.state = \"active\""
      comparison      = "COMPARISON_GT"
      threshold_value = local.functions[each.key].max_instances - 0.5
      duration        = "600s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_MAX"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  # Without requests, nothing is measured, and the incident would stay open for days.
  alert_strategy {
    auto_close = "1800s"
  }

  depends_on = [google_project_service.api]
}

resource "google_monitoring_alert_policy" "logs_errors" {
  for_each = local.service_filters

  display_name          = "${local.functions[each.key].name} logs errors"
  combiner              = "OR"
  notification_channels = var.notification_channels

  documentation {
    mime_type = "text/markdown"
    content   = "The log entry has the ID of the run in Dagster, in the label `dagster_run_id`."
  }

  conditions {
    display_name = "An entry of severity ERROR or higher"

    condition_matched_log {
      filter = "${each.value} AND severity >= ERROR AND NOT log_id(\"run.googleapis.com/requests\")" # not the 5xx responses
    }
  }

  # Google requires a limit for policies on log entries.
  alert_strategy {
    notification_rate_limit {
      period = "3600s"
    }
  }

  depends_on = [google_project_service.api]
}
