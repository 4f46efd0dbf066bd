# Who does what: each part has an account of its own. What each may do stands in iam.tf.

locals {
  # An account's name has at most 30 characters.
  account_prefix = trimsuffix(substr(var.function_name, 0, 17), "-")
}

resource "google_service_account" "function" {
  account_id   = "${local.account_prefix}-function"
  display_name = "The cloud function ${var.function_name}"

  depends_on = [google_project_service.api]
}

resource "google_service_account" "orchestrator" {
  account_id   = "${local.account_prefix}-orchestrator"
  display_name = "Dagster, which calls ${var.function_name}"

  depends_on = [google_project_service.api]
}

resource "google_service_account" "build" {
  account_id   = "${local.account_prefix}-build"
  display_name = "Builds ${var.function_name}"

  depends_on = [google_project_service.api]
}
