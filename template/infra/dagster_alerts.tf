# An alert policy for Dagster, if `notification_channels` names a channel.

# A dead daemon cannot report itself. One that is alive makes about 1,100 connections to the database
# in five minutes, also if it has nothing to do; the other parts make hardly any while nothing happens.
resource "google_monitoring_alert_policy" "dagster_is_dead" {
  count = length(var.notification_channels) > 0 ? 1 : 0

  display_name          = "${local.name}: Dagster is dead"
  combiner              = "OR"
  notification_channels = var.notification_channels

  documentation {
    mime_type = "text/markdown"
    content   = "Dagster's daemon hardly uses the database, so it launches no runs: it, its machine, the network or the database is down. See infra/README.md for the logs. Before the first deployment of Dagster, this alert is right, too."
  }

  conditions {
    display_name = "Fewer than 100 connections to the database in five minutes"

    condition_threshold {
      filter                  = "resource.type = \"cloudsql_database\" AND resource.labels.database_id = \"${var.project_id}:${google_sql_database_instance.dagster.name}\" AND metric.type = \"cloudsql.googleapis.com/database/postgresql/new_connection_count\" AND metric.labels.database = \"${google_sql_database.dagster.name}\""
      comparison              = "COMPARISON_LT"
      threshold_value         = 100
      duration                = "300s"
      evaluation_missing_data = "EVALUATION_MISSING_DATA_ACTIVE"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = "ALIGN_SUM"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  depends_on = [google_project_service.api]
}
