locals {
  function_urls = { for folder, function in google_cloudfunctions2_function.function : folder => function.service_config[0].uri }
}

output "function_urls" {
  description = "The URLs of the functions, by folder."
  value       = local.function_urls
}

output "orchestrator_service_account" {
  description = "The service account that Dagster must run as."
  value       = google_service_account.orchestrator.email
}

output "settings" {
  description = "Settings for Dagster, in the format of orchestrator/.env."
  value = join("", formatlist("%s\n", concat(
    ["FUNCTION_URL=${local.function_urls["cloud_function"]}"],
    [for folder, url in local.function_urls : "FUNCTION_URL_${upper(replace(folder, "-", "_"))}=${url}" if folder != "cloud_function"],
    [
      "FUNCTION_TIMEOUT=${local.functions["cloud_function"].timeout}",
      "LAKE_URI=gs://${google_storage_bucket.lake.name}",
      "MESSAGES_BUCKET=${google_storage_bucket.messages.name}",
      "GOOGLE_CLOUD_PROJECT=${var.project_id}",
      "GOOGLE_CLOUD_REGION=${var.region}",
      "IMPERSONATE_SERVICE_ACCOUNT=${google_service_account.orchestrator.email}",
    ],
  )))
}
