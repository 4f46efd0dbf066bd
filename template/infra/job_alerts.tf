# An alert policy for each job, if `notification_channels` names a channel.

resource "google_monitoring_alert_policy" "execution_failed" {
  for_each = length(var.notification_channels) > 0 ? local.jobs : {}

  display_name          = "An execution of ${each.value.name} failed"
  combiner              = "OR"
  notification_channels = var.notification_channels

  documentation {
    mime_type = "text/markdown"
    content   = "See the run in Dagster: its error names the task, and has a link to the logs of the execution."
  }

  conditions {
    display_name = "An execution failed"

    condition_threshold {
      filter          = "resource.type = \"cloud_run_job\" AND resource.labels.job_name = \"${each.value.name}\" AND metric.type = \"run.googleapis.com/job/completed_execution_count\" AND metric.labels.result = \"failed\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_SUM"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  # Nothing is measured after a failure. The incident would stay open for days, and hide further failures.
  alert_strategy {
    auto_close = "1800s"
  }

  depends_on = [google_project_service.api]
}
