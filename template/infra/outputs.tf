output "function_url" {
  description = "The function's URL."
  value       = google_cloudfunctions2_function.function.service_config[0].uri
}

output "orchestrator_service_account" {
  description = "The service account that Dagster must run as."
  value       = google_service_account.orchestrator.email
}

output "settings" {
  description = "Settings for Dagster, in the format of orchestrator/.env."
  value       = <<-EOT
    FUNCTION_URL=${google_cloudfunctions2_function.function.service_config[0].uri}
    FUNCTION_TIMEOUT=${var.function_timeout}
    LAKE_URI=gs://${google_storage_bucket.lake.name}
    MESSAGES_BUCKET=${google_storage_bucket.messages.name}
    GOOGLE_CLOUD_PROJECT=${var.project_id}
    IMPERSONATE_SERVICE_ACCOUNT=${google_service_account.orchestrator.email}
  EOT
}
